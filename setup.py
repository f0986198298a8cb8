"""Builds the native libraries; everything else about the package is in pyproject.toml.

They are plain C and optional: where they cannot be built the install goes on without them, and says so.
"""

import os
import platform
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

OPTIMIZE = [] if "-O" in os.environ.get("CFLAGS", "") else ["-O3"]  # what CFLAGS asks for goes before
FLAGS = [
    *OPTIMIZE,
    "-std=c11",
    "-fvisibility=default",
    "-ffp-contract=off",  # products are fused where the source says so
]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"]
NEWER = ("amx_bf16",)  # which a compiler may lack (gcc has it since 11)
ON_X86 = platform.machine() in ("x86_64", "AMD64")


class Library(NamedTuple):
    """A native library: sources that are compiled once, and those that are compiled for each instruction set."""

    folder: Path
    common: list[str]
    per_variant: list[str]
    variants: dict[str, list[str]]  # by name, the compiler's flags
    libraries: list[str]


LIBRARIES = {
    # genosparse/attention/cpu/native.py knows the variants by these names.
    "genosparse.attention.cpu._native": Library(
        Path("genosparse/attention/cpu/kernels"),
        ["threads.c", "processor.c"],
        ["forward.c", "backward.c"],
        {
            "avx2": ["-mavx2", "-mfma", "-mf16c"],
            "avx512": AVX512,
            "avx512_bf16": [*AVX512, "-mavx512bf16", "-DUNIT_BFLOAT16"],
            "amx_bf16": [*AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16", "-DUNIT_BFLOAT16", "-DUNIT_AMX"],
        },
        ["m"],
    ),
    # genosparse/readers/_lines.py does.
    "genosparse.readers._native": Library(
        Path("genosparse/readers/native"),
        [],
        ["fasta.c"],
        {"plain": [], **({"avx2": ["-mavx2"]} if ON_X86 else {})},
        [],
    ),
}


class BuildLibraries(build_ext):
    """Compiles the sources once for each instruction set and links all of a library into one."""

    def build_extension(self, ext: Extension) -> None:
        library = LIBRARIES[ext.name]
        temporary = Path(self.build_temp) / ext.name
        objects = self._compile(library, library.common, temporary / "common", ["-pthread"])
        for name, flags in library.variants.items():
            try:
                objects += self._compile(library, library.per_variant, temporary / name, [f"-DVARIANT={name}", *flags])
            except CompileError:
                if name not in NEWER:
                    raise
                self.warn(f"the compiler has no {name}; the kernels are built without it")
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(objects, str(target), extra_postargs=["-pthread"], libraries=library.libraries)

    def _compile(self, library: Library, sources: list[str], folder: Path, flags: list[str]) -> list[str]:
        paths = [str(library.folder / source) for source in sources]
        depends = sorted(map(str, library.folder.glob("*.h")))
        return self.compiler.compile(paths, output_dir=str(folder), extra_postargs=[*FLAGS, *flags], depends=depends)


def extensions() -> list[Extension]:
    """The libraries, on the processors and systems that they are written for."""
    names = []
    if platform.system() == "Linux" and ON_X86:
        names.append("genosparse.attention.cpu._native")
    if os.name == "posix":
        names.append("genosparse.readers._native")
    return [_extension(name, LIBRARIES[name]) for name in names]


def _extension(name: str, library: Library) -> Extension:
    sources = [str(library.folder / source) for source in (*library.common, *library.per_variant)]
    return Extension(name, sources, depends=sorted(map(str, library.folder.glob("*.h"))), optional=True)


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildLibraries})
