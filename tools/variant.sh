# Sourced with a name: builds the package with other kernels beside the usual ones, as the environment says, in
# build/NAME, which a second call only brings up to date. Leaves $python, $tree, and the folder of the tests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-$PWD/.venv/bin/python}
tree=$PWD/build/$1
mkdir -p "$tree"
rm -rf "$tree/ulfast"
cp -rp ulfast csrc setup.py pyproject.toml README.md LICENSE "$tree/"
rm -f "$tree"/ulfast/*.so
"$python" -c 'import pybind11, ninja' 2>/dev/null || "$python" -m pip --quiet install pybind11 ninja
(cd "$tree" && ULFAST_CUDA=0 "$python" setup.py -q build_ext --inplace)
cd tests
