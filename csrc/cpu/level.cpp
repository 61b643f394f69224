// The table of the level this file is compiled for.
#include "table.h"

#define ULFAST_STRING_(x) #x
#define ULFAST_STRING(x) ULFAST_STRING_(x)

namespace ulfast {
namespace ULFAST_LEVEL {

extern const Table table;
const Table table = {ULFAST_STRING(ULFAST_LEVEL),
                     4,
                     project,
                     pack,
                     chunks,
                     ingest,
                     softmax_gradient,
                     softmax_update,
                     apply_perturbation,
                     pgd_step,
                     philox_uniform,
                     philox_normal,
                     perturb_lsp,
                     perturb_ar,
                     class_moments,
                     perturb_convolution,
                     perturb_linear,
                     patch_filter};

}  // namespace ULFAST_LEVEL
}  // namespace ulfast
