"""The one part that is compiled; without a compiler the installation succeeds all the same, and torch does its work."""

import sys

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "normscope.stats._reading",
            ["src/normscope/stats/_reading.c"],
            depends=["src/normscope/stats/loops.h"],
            define_macros=[("Py_LIMITED_API", "0x030A0000")],
            py_limited_api=True,
            extra_compile_args=[] if sys.platform == "win32" else ["-std=c11", "-O3"],
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
