"""Builds the kernels with ninja. Torch is not needed: the kernels know only addresses (see csrc/ulfast.h).

Environment:
    ULFAST_CUDA=0|1        force the CUDA kernels off or on (default: on where nvcc is found)
    ULFAST_CUDA_ARCHS      e.g. "80,90" (default 75,80,86,89,90 and PTX of the last)
    ULFAST_SANITIZE=1      AddressSanitizer and UndefinedBehaviorSanitizer, for the tests
    ULFAST_BASELINE        flags of the lowest level, for the tests (tools/emulate_avx512.sh)
    CXX                    the C++ compiler (default g++)
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
CUDA_ARCHITECTURES = "75,80,86,89,90"
LEVELS = {"baseline": os.environ.get("ULFAST_BASELINE", "")}
if platform.machine() in ("x86_64", "AMD64"):
    LEVELS |= {"v3": "-march=x86-64-v3", "v4": "-march=x86-64-v4 -mprefer-vector-width=512 -Wno-maybe-uninitialized"}


def ninja_program() -> str:
    found = shutil.which("ninja")
    if found:
        return found
    import ninja

    return str(Path(ninja.BIN_DIR) / "ninja")


def compiler() -> str:
    for name in [os.environ.get("CXX"), "g++", "c++", "clang++"]:
        if name and shutil.which(name.split()[0]):
            return name
    raise SystemExit(
        "ulfast: no C++ compiler was found. Install one (Debian, Ubuntu: apt-get install g++) or set CXX, then repeat."
    )


def kernels() -> dict[str, str]:
    """The files that are compiled once per CPU level, and the flags that the first line of each asks for.

    Random numbers and pixels must round alike on every level (-ffp-contract=off); sums of products need not.
    """
    files = sorted(path for path in (ROOT / "csrc" / "cpu").glob("*.cpp") if path.stem != "dispatch")
    first = {path.stem: path.read_text().partition("\n")[0] for path in files}
    return {name: line.partition("// flags: ")[2] for name, line in first.items()}


def want_cuda() -> bool:
    """ULFAST_CUDA, or whether there is an nvcc."""
    asked = os.environ.get("ULFAST_CUDA", "")
    if asked not in ("", "0", "1"):
        raise SystemExit(f"ulfast: ULFAST_CUDA must be 0 or 1, got {asked!r}")
    found = shutil.which("nvcc") is not None
    if asked == "1" and not found:
        raise SystemExit(
            "ulfast: ULFAST_CUDA=1, but there is no nvcc on the PATH. Install the CUDA toolkit, then repeat."
        )
    return found if asked == "" else asked == "1"


def nvcc_root() -> Path:
    """The toolkit's folder, from the real place of nvcc."""
    done = subprocess.run(["nvcc", "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True)
    for line in done.stderr.splitlines():
        if line.startswith("#$ TOP="):
            return Path(line.removeprefix("#$ TOP=").strip()).resolve()
    return Path(str(shutil.which("nvcc"))).resolve().parent.parent


def cuda_rule() -> list[str]:
    """Machine code for every architecture asked for, and PTX of the last for those to come. No contraction: the
    perturbations must have the same bytes as on the CPU."""
    names = [a.strip().replace(".", "") for a in os.environ.get("ULFAST_CUDA_ARCHS", CUDA_ARCHITECTURES).split(",")]
    # Of compute capability 8 one intermediate code serves all: a fifth less time, and the same size.
    codes = [f"-gencode arch=compute_{'80' if a[0] == '8' else a},code=sm_{a}" for a in names]
    codes.append(f"-gencode arch=compute_{names[-1]},code=compute_{names[-1]}")
    flags = f"-O3 -std=c++17 --fmad=false -Xcompiler -fPIC,-fvisibility=hidden {' '.join(codes)}"
    command = f"nvcc --threads 0 {flags} -ccbin {shlex.quote(compiler().split()[0])} -MD -MF $out.d -c $in -o $out"
    return ["rule cuda", f"  command = {command}", "  depfile = $out.d", "  deps = gcc", "  description = $out"]


class NinjaBuild(build_ext):
    """Writes build.ninja and runs it; setuptools only needs to find the result in place."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        sanitize = os.environ.get("ULFAST_SANITIZE") == "1"
        common = "-O3 -fPIC -std=c++17 -fopenmp -fvisibility=hidden -fno-math-errno -fno-trapping-math"
        common += " -Wall -Wextra -Wno-psabi"
        if sanitize:
            common = common.replace("-O3", "-O1 -g -fsanitize=address,undefined -fno-omit-frame-pointer")
        link = "-fopenmp" + (" -fsanitize=address,undefined" if sanitize else " -s")
        include = f"-isystem {sysconfig.get_paths()['include']} -isystem {pybind11.get_include()}"
        lines = [
            f"cxx = {compiler()}",
            f"common = {common}",
            "rule compile",
            "  command = $cxx $common $flags -MMD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = $out",
        ]
        objects = []

        def compile_(source: str, name: str, flags: str) -> None:
            objects.append(name)
            lines.extend([f"build {name}: compile {escape(ROOT / 'csrc' / source)}", f"  flags = {flags}"])

        cuda = sorted((ROOT / "csrc" / "cuda").glob("*.cu")) if want_cuda() else []
        compile_("bindings.cpp", "bindings.o", include + (" -DULFAST_CUDA" if cuda else ""))
        compile_("cpu/dispatch.cpp", "dispatch.o", "")
        for level, march in LEVELS.items():
            for kernel, flags in kernels().items():
                compile_(f"cpu/{kernel}.cpp", f"{kernel}.{level}.o", f"-DULFAST_LEVEL={level} {march} {flags}".strip())
        if cuda:
            compile_("bindings_cuda.cpp", "bindings_cuda.o", include)
            lines += cuda_rule()
            for source in cuda:
                objects.append(f"{source.stem}.cuda.o")
                lines.append(f"build {objects[-1]}: cuda {escape(source)}")
            # A toolkit has the first, one installed by pip or conda another.
            folders = (nvcc_root() / name for name in ("lib64", "lib", "targets/x86_64-linux/lib"))
            link += "".join(f" -L{folder}" for folder in folders) + " -lcudart_static -ldl -lrt -lpthread"
        lines += ["rule link", f"  command = $cxx -shared $in -o $out {link}", "  description = $out"]
        lines.append(f"build {escape(target)}: link {' '.join(objects)}")
        (build / "build.ninja").write_text("\n".join(lines) + "\n")
        command = [ninja_program(), "-C", str(build)] + (["-v"] if self.verbose and self.verbose > 1 else [])
        print(shlex.join(command), flush=True)
        if subprocess.run(command, stdout=sys.stderr).returncode:
            raise SystemExit("ulfast: the kernels did not compile; the compiler's message stands above.")


def escape(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


setup(ext_modules=[Extension("ulfast._C", ["csrc/bindings.cpp"])], cmdclass={"build_ext": NinjaBuild})
