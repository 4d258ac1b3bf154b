// Bounds what libwebp allocates for one picture: CMakeLists.txt puts this in front of each of its
// files. Its own bound is 16 GB, and only for a single piece.
#pragma once

#include <stdlib.h>

#ifdef __cplusplus
extern "C" {
#endif

// As those of the standard library, but NULL once a picture's share is used up.
void * lml_webp_malloc(size_t n_bytes);
void * lml_webp_calloc(size_t n, size_t n_bytes);

#ifdef __cplusplus
}
#else
#define malloc lml_webp_malloc
#define calloc lml_webp_calloc
#endif
