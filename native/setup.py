"""The extension module: of Python's stable interface, so that one wheel serves 3.11 and all later ones."""

import sysconfig
import tomllib
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).parent
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
# A free-threaded Python has no stable interface.
STABLE = not sysconfig.get_config_var("Py_GIL_DISABLED")

macros: list[tuple[str, str | None]] = [("ARCPIPE_VERSION", f'"{VERSION}"')]
if STABLE:
    macros.append(("Py_LIMITED_API", "0x030B0000"))

setup(
    ext_modules=[
        Extension(
            "arcpipe_native._kernel",
            sources=sorted(str(path.relative_to(ROOT)) for path in (ROOT / "src").glob("*.c")),
            depends=sorted(str(path.relative_to(ROOT)) for path in (ROOT / "src").glob("*.h")),
            define_macros=macros,
            extra_compile_args=["-std=c11", "-O3", "-fvisibility=hidden", "-Werror=implicit-function-declaration"],
            py_limited_api=STABLE,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if STABLE else {},
)
