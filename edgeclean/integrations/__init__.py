"""Parts for build systems: CMake, Make, Yocto. Files, no Python."""
