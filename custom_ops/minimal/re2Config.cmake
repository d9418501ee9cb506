# Debian has no package description of re2.
if(NOT TARGET re2::re2)
  add_library(re2::re2 SHARED IMPORTED)
  set_target_properties(re2::re2 PROPERTIES IMPORTED_LOCATION /usr/lib/${CMAKE_LIBRARY_ARCHITECTURE}/libre2.so)
endif()
