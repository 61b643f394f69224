// The table of the level for which this file is compiled.
#include "table.h"

#define ULFAST_STRING_(x) #x
#define ULFAST_STRING(x) ULFAST_STRING_(x)

namespace ulfast {
namespace ULFAST_LEVEL {

extern const Table table;
#define ULFAST_ENTRY(R, name, ...) name,
#define ULFAST_ROW_ENTRY(name, Arguments) name,
const Table table = {ULFAST_STRING(ULFAST_LEVEL), 4,
                     ULFAST_OTHER_KERNELS(ULFAST_ENTRY) ULFAST_ROW_OPERATORS(ULFAST_ROW_ENTRY)};

}  // namespace ULFAST_LEVEL
}  // namespace ulfast
