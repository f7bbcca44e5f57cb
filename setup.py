"""The one compiled part; where no compiler is at hand, Edgewright is installed without it and computes in numpy."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "edgewright.stats._input_stats",
            ["src/edgewright/stats/_input_stats.c"],
            extra_compile_args=["-O3", "-fno-strict-aliasing"],
            py_limited_api=True,
            optional=True,
        )
    ],
    # One wheel for each platform, whatever the Python.
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
