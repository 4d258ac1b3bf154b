// Limits the memory that libwebp allocates for one picture. CMakeLists.txt includes this header at the
// start of each of libwebp's files. libwebp's own limit is 16 GB for each allocation.
#pragma once

#include <stdlib.h>

#ifdef __cplusplus
extern "C" {
#endif

// As malloc and calloc, but they return NULL once the picture's limit is reached.
void * lml_webp_malloc(size_t n_bytes);
void * lml_webp_calloc(size_t n, size_t n_bytes);

#ifdef __cplusplus
}
#else
#define malloc lml_webp_malloc
#define calloc lml_webp_calloc
#endif
