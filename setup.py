"""Builds the native attention kernels; everything else about the package is in pyproject.toml.

The kernels are plain C and optional: where they cannot be built the install goes on without them, and says so.
"""

import os
import platform
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

KERNELS = Path("genosparse/attention/cpu/kernels")
COMMON = ["threads.c", "processor.c"]
PER_VARIANT = ["forward.c", "backward.c"]
OPTIMIZE = [] if "-O" in os.environ.get("CFLAGS", "") else ["-O3"]  # what CFLAGS asks for goes before
FLAGS = [
    *OPTIMIZE,
    "-std=c11",
    "-fvisibility=default",
    "-ffp-contract=off",  # products are fused where the source says so
]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"]
# Each compiles the same source; genosparse/attention/cpu/native.py knows them by these names.
VARIANTS = {
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": AVX512,
    "avx512_bf16": [*AVX512, "-mavx512bf16", "-DUNIT_BFLOAT16"],
    "amx_bf16": [*AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16", "-DUNIT_BFLOAT16", "-DUNIT_AMX"],
}
NEWER = ("amx_bf16",)  # which a compiler may lack (gcc has it since 11)


class BuildKernels(build_ext):
    """Compiles the source once for each instruction set and links all into one library."""

    def build_extension(self, ext: Extension) -> None:
        temporary = Path(self.build_temp)
        objects = self._compile(COMMON, temporary / "common", ["-pthread"])
        for name, flags in VARIANTS.items():
            try:
                objects += self._compile(PER_VARIANT, temporary / name, [f"-DVARIANT={name}", *flags])
            except CompileError:
                if name not in NEWER:
                    raise
                self.warn(f"the compiler has no {name}; the kernels are built without it")
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(objects, str(target), extra_postargs=["-pthread"], libraries=["m"])

    def _compile(self, sources: list[str], folder: Path, flags: list[str]) -> list[str]:
        paths = [str(KERNELS / source) for source in sources]
        return self.compiler.compile(
            paths, output_dir=str(folder), extra_postargs=[*FLAGS, *flags], depends=list(map(str, KERNELS.glob("*.h")))
        )


def extensions() -> list[Extension]:
    """The kernels, on the processors and systems that they are written for."""
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "AMD64"):
        return []
    sources = [str(KERNELS / source) for source in (*COMMON, *PER_VARIANT)]
    depends = sorted(map(str, KERNELS.glob("*.h")))
    return [Extension("genosparse.attention.cpu._native", sources, depends=depends, optional=True)]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildKernels})
