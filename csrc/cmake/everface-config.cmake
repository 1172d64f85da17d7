# find_package(everface CONFIG) gives the target everface::everface.
include("${CMAKE_CURRENT_LIST_DIR}/everface-targets.cmake")
