#!/usr/bin/env bash
# Installs FFCV, which the .beton loader `ulfast.data.beton.FFCVLoader` needs, into .venv. tools/setup.sh calls it; it
# does nothing where FFCV is there, and never fails a set-up: without FFCV everything else works, .beton files included.
# ULFAST_FFCV=0 leaves it out.
#
# FFCV asks pkg-config for all of OpenCV (690 MB of Debian packages) and links only core, imgproc and turbojpeg (10 MB),
# so it is given an opencv4.pc of these two modules and an opencv.hpp that includes them. Its list of dependencies would
# bring a second OpenCV and much that it does not import, so it comes without it.
set -euo pipefail
cd "$(dirname "$0")/.."
version=1.0.2
python=${PYTHON:-.venv/bin/python}
packages=(libopencv-imgproc-dev libturbojpeg0-dev pkg-config g++)
skip() { echo "setup: no FFCV: $*"; exit 0; }
[ "${ULFAST_FFCV:-1}" != 0 ] || exit 0

# Its package metadata, its shared library with all that this links to, and what it imports; no import of torch.
there() {
    "$python" - "$version" 2>/dev/null <<'PYTHON'
import ctypes, importlib.metadata, importlib.util, sys
from pathlib import Path
assert importlib.metadata.version("ffcv") == sys.argv[1]
assert all(importlib.util.find_spec(name) for name in ("numba", "cv2", "tqdm", "PIL"))
ctypes.CDLL(str(next(Path(importlib.util.find_spec("ffcv").origin).parent.glob("_libffcv*.so"))))
PYTHON
}
headers() {
    command -v "${CXX:-g++}" >/dev/null && command -v pkg-config >/dev/null &&
        pkg-config --exists libturbojpeg && [ -e /usr/include/opencv4/opencv2/imgproc.hpp ]
}
if there; then exit 0; fi
if ! headers; then
    line="apt-get install -y --no-install-recommends ${packages[*]}"
    root=
    if [ "$(id -u)" != 0 ]; then
        root="sudo -n"
        sudo -n true 2>/dev/null || skip "for it run 'sudo $line', then make setup"
    fi
    command -v apt-get >/dev/null || skip "install the headers of OpenCV's core and imgproc, of libturbojpeg, and pkg-config, then make setup"
    echo "setup: ${packages[*]}"
    install() { DEBIAN_FRONTEND=noninteractive $root $line -qq >/dev/null 2>&1; }
    # A package list that is out of date is fetched anew only when it is needed.
    install || { $root apt-get update -qq >/dev/null 2>&1 && install; } || skip "'$line' failed; run it, then make setup"
fi
shim=$PWD/build/ffcv
mkdir -p "$shim/opencv2"
printf '#include <opencv2/core.hpp>\n#include <opencv2/imgproc.hpp>\n' >"$shim/opencv2/opencv.hpp"
cat >"$shim/opencv4.pc" <<EOF_PC
Name: opencv4
Description: OpenCV, core and imgproc
Version: 4
Libs: -lopencv_core -lopencv_imgproc
Cflags: -I$shim -I/usr/include/opencv4
EOF_PC
echo "setup: FFCV $version"
constraints=()
[ ! -e .venv/constraints.txt ] || constraints=(-c .venv/constraints.txt)
pip() { PKG_CONFIG_PATH="$shim" "$python" -m pip --quiet --disable-pip-version-check "$@"; }
pip install "${constraints[@]}" numba opencv-python-headless pillow tqdm &&
    pip install --no-deps --no-binary ffcv "ffcv==$version" || skip "pip could not install it"
there || skip "it was installed and cannot be loaded"
