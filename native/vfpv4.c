// ggml's question to a library for a kind of processor: whether it runs on this one, and how well.
#include <asm/hwcap.h>
#include <sys/auxv.h>

int ggml_backend_score(void) {
    return (getauxval(AT_HWCAP) & HWCAP_VFPv4) != 0;
}
