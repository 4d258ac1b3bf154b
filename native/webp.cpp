#include "bridge.h"

#include <cstdlib>

#include "webp/decode.h"
#include "webp_memory.h"

namespace {

size_t n_bytes_left = 0;

bool take(size_t n_bytes) {
    if (n_bytes > n_bytes_left) {
        return false;
    }
    n_bytes_left -= n_bytes;
    return true;
}

}  // namespace

void * lml_webp_malloc(size_t n_bytes) {
    return take(n_bytes) ? std::malloc(n_bytes) : nullptr;
}

void * lml_webp_calloc(size_t n, size_t n_bytes) {  // libwebp has checked that the product does not overflow
    return take(n * n_bytes) ? std::calloc(n, n_bytes) : nullptr;
}

char * lml_webp_decode(const char * data, size_t n_bytes, int32_t * width, int32_t * height) {
    const auto * file = reinterpret_cast<const uint8_t *>(data);
    if (!WebPGetInfo(file, n_bytes, width, height)) {
        return nullptr;
    }
    // The pixels twice, and 64 MiB for Huffman codes, more than encoders need: 580 KB can ask for 387 MB of codes.
    const size_t n_pixels = static_cast<size_t>(*width) * *height;
    n_bytes_left          = (64u << 20) + 8 * n_pixels;
    auto * pixels         = static_cast<uint8_t *>(std::malloc(3 * n_pixels));
    if (pixels != nullptr && WebPDecodeRGBInto(file, n_bytes, pixels, 3 * n_pixels, 3 * *width) == nullptr) {
        std::free(pixels);
        pixels = nullptr;
    }
    return reinterpret_cast<char *>(pixels);
}
