// Limits the memory and time of one call in one thread. A chat template is a program that comes with a
// model file, and llama.cpp runs it without limits.
//
// llama.cpp allocates memory in each step of a template, always with operator new. The operator below
// replaces the standard library's in all libraries that are loaded with the bridge.

#include "bridge.h"

#include <malloc.h>

#include <chrono>
#include <cstdlib>
#include <new>

namespace {

using Clock = std::chrono::steady_clock;

// The clock is read once in so many allocations, because reading it takes as long as one. After an error,
// the allocations before the next look suffice to report it; a template that continues soon gets another.
constexpr int    LOOK_EVERY  = 256;
constexpr size_t LARGE_BYTES = 1 << 16;  // look before a large allocation, too: filling it takes long

struct Bounds {
    bool              is_on;
    int               n_until_look;
    int64_t           n_left;  // bytes
    Clock::time_point end;
};

// Each allocation reads this. In glibc's static TLS block it is read without a function call, which would take
// a tenth of the time of a short prompt. Other C libraries have no room there for a library loaded later.
#ifdef __GLIBC__
[[gnu::tls_model("initial-exec")]]
#endif
thread_local Bounds bounds;

struct TooMuch : std::bad_alloc {
    const char * what() const noexcept override { return "the template takes more memory than it is allowed"; }
};

struct TooLong : std::bad_alloc {
    const char * what() const noexcept override { return "the template takes more time than it may"; }
};

void check(size_t n_bytes) {
    if (bounds.n_left < 0 || n_bytes > static_cast<size_t>(bounds.n_left)) {
        throw TooMuch();
    }
    if (--bounds.n_until_look <= 0 || n_bytes >= LARGE_BYTES) {
        bounds.n_until_look = LOOK_EVERY;
        if (Clock::now() > bounds.end) {
            throw TooLong();
        }
    }
}

}  // namespace

void lml_bound_thread(size_t max_bytes, float max_s) {
    const auto span = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<float>(max_s));
    bounds          = { max_bytes > 0, LOOK_EVERY, static_cast<int64_t>(max_bytes), Clock::now() + span };
}

LML_API void * operator new(size_t n_bytes) {
    if (bounds.is_on) {
        check(n_bytes);
    }
    void * block = std::malloc(n_bytes == 0 ? 1 : n_bytes);
    if (block == nullptr) {
        throw std::bad_alloc();
    }
    if (bounds.is_on) {
        bounds.n_left -= static_cast<int64_t>(malloc_usable_size(block));
    }
    return block;
}

LML_API void operator delete(void * block) noexcept {
    if (bounds.is_on) {
        bounds.n_left += static_cast<int64_t>(malloc_usable_size(block));  // 0 for NULL
    }
    std::free(block);
}

LML_API void operator delete(void * block, size_t) noexcept {
    operator delete(block);
}
