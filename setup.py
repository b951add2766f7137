"""Builds the compiled modules; everything else about the package is in pyproject.toml.

Environment:
    IPSEC_WITHOUT_IPSEC_MB=1   leave intel-ipsec-mb out even if it is installed
    IPSEC_SANITIZE=LIST        build for debugging with gcc's -fsanitize=LIST, such as address,undefined
    IPSEC_PROBES=1             also build ipsec._probe, which the tests reach single functions through
    IPSEC_COVERAGE=1           let coverage.py see the lines of the compiled module
"""

from __future__ import annotations

import os
import shutil
import tempfile
from glob import glob
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, SetupError

LIBCRYPTO_PROBE = """
#include <openssl/evp.h>
#include <openssl/opensslv.h>
#if OPENSSL_VERSION_NUMBER < 0x30000000L
#error OpenSSL 3.0 or later is needed
#endif
int main(void) { return EVP_MAC_fetch(NULL, "HMAC", NULL) == NULL; }
"""

# 1.3, Debian 12's, is the first version with the direct calls that the data path uses
IPSEC_MB_PROBE = """
#include <intel-ipsec-mb.h>
#if IMB_VERSION_NUM < IMB_VERSION(1, 3, 0)
#error intel-ipsec-mb 1.3 or later is needed
#endif
int main(void) { return alloc_mb_mgr(0) == NULL; }
"""

#: Packets are read through casts of several types, so aliasing rules stay off.
RELEASE_FLAGS = ["-O3", "-fno-strict-aliasing", "-fvisibility=hidden", "-Wall"]
DEBUG_FLAGS = ["-O1", "-g", "-fno-strict-aliasing", "-fno-omit-frame-pointer", "-Wall"]

#: name -> sources beside the .pyx. _providers alone is linked with every provider; _modp is not part of the data path.
COMPILED: dict[str, list[str]] = {
    "_fastpath": [],
    "_providers": ["ipsec/fast/gcm_avx512.c", "ipsec/fast/gcm_vaes.c"],
    "_pump": [],
    "_modp": [],
}
PROBES: dict[str, list[str]] = {"_probe": []}


def switched_on(name: str) -> bool:
    return os.environ.get(name, "0") not in ("", "0")


class BuildExt(build_ext):
    """Finds the crypto libraries with the compiler that is going to use them."""

    def build_extensions(self) -> None:
        if shutil.which(self.compiler.compiler_so[0]) is None:
            raise SetupError(f"no C compiler ({self.compiler.compiler_so[0]}): on Debian, apt-get install gcc")
        if not self.links(LIBCRYPTO_PROBE, ["crypto"]):
            raise SetupError("OpenSSL 3.0 headers and libcrypto were not found: on Debian, apt-get install libssl-dev")
        ipsec_mb = not switched_on("IPSEC_WITHOUT_IPSEC_MB") and self.links(IPSEC_MB_PROBE, ["IPSec_MB"])
        print(f"crypto providers: libcrypto{', intel-ipsec-mb' if ipsec_mb else ''}")
        for extension in self.extensions:
            extension.libraries = ["crypto"]
            if extension.name == "ipsec._providers" and ipsec_mb:
                extension.libraries.append("IPSec_MB")
                extension.define_macros.append(("HAVE_IPSEC_MB", "1"))
        self.parallel = self.parallel or os.cpu_count()
        super().build_extensions()

    def links(self, code: str, libraries: list[str]) -> bool:
        """Whether this program compiles and links."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(code)
            try:
                # an absolute source would be rebuilt below output_dir with its whole path
                objects = self.compiler.compile([str(source)], output_dir=folder, extra_preargs=["-w"])
                self.compiler.link_executable(objects, str(Path(folder, "probe")), libraries=libraries)
            except CCompilerError:
                return False
        return True


def compiled_modules(sanitize: str, coverage: bool, probes: bool) -> list[Extension]:
    """The extensions, translated to C below build/ (a folder for each set of directives)."""
    if sanitize:
        flags, link = [*DEBUG_FLAGS, f"-fsanitize={sanitize}", "-fno-sanitize-recover=all"], [f"-fsanitize={sanitize}"]
    else:
        flags, link = RELEASE_FLAGS, ["-Wl,-z,relro,-z,now"]
    built = [
        Extension(
            f"ipsec.{name}",
            [f"ipsec/{name}.pyx", *sources],
            include_dirs=["ipsec", "ipsec/fast"],
            depends=[*glob("ipsec/*.pxd"), *glob("ipsec/fast/*.pxd"), *glob("ipsec/fast/*.h")],
            define_macros=[("CYTHON_TRACE_NOGIL", "1")] if coverage else [],
            extra_compile_args=flags,
            extra_link_args=link,
        )
        for name, sources in (COMPILED | PROBES if probes else COMPILED).items()
    ]
    directives = {
        "language_level": 3,
        "boundscheck": False,
        "wraparound": False,
        "cdivision": True,
        "linetrace": coverage,
    }
    folder = "build/cython-coverage" if coverage else "build/cython"
    extensions: list[Extension] = cythonize(built, compiler_directives=directives, build_dir=folder)
    return extensions


setup(
    ext_modules=compiled_modules(
        os.environ.get("IPSEC_SANITIZE", ""), switched_on("IPSEC_COVERAGE"), switched_on("IPSEC_PROBES")
    ),
    cmdclass={"build_ext": BuildExt},
)
