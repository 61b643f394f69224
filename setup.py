"""Builds the kernels with ninja. Torch is not needed: the kernels know only addresses (see csrc/ulfast.h).

Environment:
    ULFAST_CUDA=0|1        force the CUDA kernels off or on (default: on where nvcc is found)
    ULFAST_CUDA_ARCHS      e.g. "80,90" (default 75,80,86,89,90 and PTX of the last)
    ULFAST_SANITIZE=1      AddressSanitizer and UndefinedBehaviorSanitizer, for the tests
    ULFAST_BASELINE        flags of the lowest level, for the tests (tools/emulate_avx512.sh)
    CXX                    the C++ compiler: g++ 10 or newer (default), clang++ 14 or newer
    CXXFLAGS, LDFLAGS      more flags, behind ours and before those of a CPU level
"""

from __future__ import annotations

import functools
import os
import platform
import re
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
OLDEST = {"g++": 10, "clang": 14}
# The psABI's levels, by name and, for GCC 10, spelled out.
LEVELS = {
    "v3": ("x86-64-v3", "cx16 sahf popcnt sse3 ssse3 sse4.1 sse4.2 avx avx2 bmi bmi2 f16c fma lzcnt movbe"),
    "v4": ("x86-64-v4", "avx512f avx512bw avx512cd avx512dq avx512vl"),
}


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


@functools.cache
def compiler_version() -> tuple[str, int]:
    """ "g++" or "clang", and its major version, from what it defines itself; one that is too old is refused."""
    command = [*shlex.split(compiler()), "-dM", "-E", "-x", "c++", os.devnull]
    done = subprocess.run(command, capture_output=True, text=True)
    defined = dict(re.findall(r"#define (__GNUC__|__clang_major__) (\d+)", done.stdout))
    kind = "clang" if "__clang_major__" in defined else "g++"
    found = int(defined.get("__clang_major__" if kind == "clang" else "__GNUC__", 0))
    if found < OLDEST[kind]:
        raise SystemExit(
            f"ulfast: {compiler()} is {f'{kind} {found}' if found else 'neither g++ nor clang'}, and the kernels need "
            "g++ 10 or clang 14, or newer. Install one and name it with CXX, then repeat."
        )
    return kind, found


def levels() -> dict[str, str]:
    """{CPU level: the flags that compile for it}."""
    found = {"baseline": os.environ.get("ULFAST_BASELINE", "")}
    if platform.machine() not in ("x86_64", "AMD64"):
        return found
    gcc = compiler_version()[0] == "g++"
    spelled = ""
    for level, (name, features) in LEVELS.items():
        spelled += "".join(f" -m{feature}" for feature in features.split())
        found[level] = spelled.strip() if compiler_version() == ("g++", 10) else f"-march={name}"
    found["v4"] += " -mprefer-vector-width=512" + (" -Wno-maybe-uninitialized" if gcc else "")
    return found


def openmp() -> tuple[str, str]:
    """The flags of OpenMP for the compiler and for the linker.

    On Linux g++'s objects are linked to no libgomp: a second one beside torch's would bring threads of its own. Torch's
    is there by the time the kernels are loaded (ulfast/ops/_extension.py). Clang's code needs clang's library.
    """
    mac = sys.platform == "darwin"
    if not mac and compiler_version()[0] == "g++":
        return "-fopenmp", ""
    compile_, link = ("-Xpreprocessor -fopenmp", "-lomp") if mac else ("-fopenmp", "-fopenmp")
    command = f"{compiler()} {compile_} -shared -x c++ {os.devnull} {link} -o {os.devnull}"
    if subprocess.run(shlex.split(command), capture_output=True).returncode == 0:
        return compile_, link
    if mac:  # Apple's clang comes without it
        print("ulfast: without libomp the kernels use one thread (brew install libomp)", file=sys.stderr)
        return "-Wno-unknown-pragmas", ""
    raise SystemExit(
        f"ulfast: {compiler()} finds no OpenMP library. Install it (Debian, Ubuntu: apt-get install libomp-dev), then "
        "repeat."
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
        threads, link = openmp()
        common = f"-O3 -fPIC -std=c++17 {threads} -fvisibility=hidden -fno-math-errno -fno-trapping-math"
        common += " -Wall -Wextra -Wno-psabi"
        if sanitize:
            common = common.replace("-O3", "-O1 -g -fsanitize=address,undefined -fno-omit-frame-pointer")
        if sys.platform == "darwin":
            link += " -undefined dynamic_lookup"
        elif sanitize:
            link = "-fopenmp -fsanitize=address,undefined"
        else:
            link += " -s"
        common = f"{common} {os.environ.get('CXXFLAGS', '')}".strip()
        link = f"{link} {os.environ.get('LDFLAGS', '')}".strip()
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
        for level, march in levels().items():
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


def long_description() -> str:
    """README.md where its pictures and its links to other files of the repository lead nowhere: without them."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"^!\[[^\]]*\]\((?!https?:)[^)]*\)\n\n?", "", text, flags=re.MULTILINE)
    return re.sub(r"\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", text)


setup(
    ext_modules=[Extension("ulfast._C", ["csrc/bindings.cpp"])],
    cmdclass={"build_ext": NinjaBuild},
    long_description=long_description(),
    long_description_content_type="text/markdown",
)
