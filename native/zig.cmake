# Compiles for another machine with zig's C and C++ compiler, which brings the C library of every target.
#
# ZIG is the program; ZIG_TARGET is the machine with its oldest C library: aarch64-linux-gnu.2.28.
set(CMAKE_SYSTEM_NAME Linux)
string(REGEX MATCH "^[^-]+" CMAKE_SYSTEM_PROCESSOR ${ZIG_TARGET})
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES ZIG ZIG_TARGET)

set(CMAKE_C_COMPILER ${ZIG} cc -target ${ZIG_TARGET})
set(CMAKE_CXX_COMPILER ${ZIG} c++ -target ${ZIG_TARGET})
foreach(language C CXX)
  set(CMAKE_${language}_ARCHIVE_CREATE "${ZIG} ar qc <TARGET> <OBJECTS>")
  set(CMAKE_${language}_ARCHIVE_FINISH "")
endforeach()
# The linker strips, because this machine's strip may not know the other's files.
set(CMAKE_STRIP true)
set(CMAKE_SHARED_LINKER_FLAGS_INIT -s)
set(CMAKE_MODULE_LINKER_FLAGS_INIT -s)
