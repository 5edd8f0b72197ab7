# Write Q of vnoise-1's table as numbers of C: cmake -DTABLE=../vae_runtime/vnoise1_table.bin -DOUT=vnoise1_table.h -P table.cmake
file(SHA256 "${TABLE}" hash)
if(NOT hash STREQUAL "43fd00c422474ae1034c4abb7591abbeca5d0a63f1b591f1ea5b8e25eb66bc3c")
  message(FATAL_ERROR "${TABLE}: expected the table of vnoise-1, got the SHA-256 ${hash}; copy it again")
endif()
file(READ "${TABLE}" bytes LIMIT 131072 HEX)
# Little-endian, eight in a line.
string(REGEX REPLACE "(..)(..)(..)(..)" "0x\\4\\3\\2\\1," numbers "${bytes}")
string(REGEX REPLACE "0x0*([0-9a-f])" "0x\\1" numbers "${numbers}")
string(REGEX REPLACE "(([^,]*,)([^,]*,)([^,]*,)([^,]*,)([^,]*,)([^,]*,)([^,]*,)([^,]*,))" "\\1\n" numbers "${numbers}")
file(WRITE "${OUT}" "${numbers}")
