// Sampling, log-probabilities, the log, and the layout of structs.

#include "bridge.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include <malloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ggml-cpu.h"
#include "log.h"
#include "mtmd-helper.h"

namespace {

int log_level = GGML_LOG_LEVEL_WARN;

// The CPU backend is loaded at run time, so its functions are found by name.
template <typename Function> Function * cpu_function(const char * name) {
    ggml_backend_reg_t cpu = ggml_backend_dev_backend_reg(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU));
    return reinterpret_cast<Function *>(ggml_backend_reg_get_proc_address(cpu, name));
}

// Collects the n likeliest tokens, best first. Among equal logits, smaller ids are preferred.
void collect_best(const float * logits, int32_t n_vocab, int32_t n, std::vector<llama_token_data> & best) {
    const auto likelier = [](const llama_token_data & a, const llama_token_data & b) {
        return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
    };
    n = std::min(n, n_vocab);
    best.clear();
    for (llama_token token = 0; token < n; token++) {
        best.push_back({ token, logits[token], 0.0f });
    }
    // A heap with the least likely token in front, so that nearly all tokens need one comparison.
    std::make_heap(best.begin(), best.end(), likelier);
    for (llama_token token = n; token < n_vocab; token++) {
        if (logits[token] > best.front().logit) {
            std::pop_heap(best.begin(), best.end(), likelier);
            best.back() = { token, logits[token], 0.0f };
            std::push_heap(best.begin(), best.end(), likelier);
        }
    }
    std::sort_heap(best.begin(), best.end(), likelier);
}

bool is_zero(const char * data, size_t n_bytes) {
    return data[0] == 0 && std::memcmp(data, data + 1, n_bytes - 1) == 0;
}

// Drops the pages that hold only zeros. In anonymous memory, they read as zeros afterwards, too.
// Nothing here allocates between a look at a page and its drop.
size_t drop_zeros(char * begin, char * end, size_t page) {
    unsigned char in_memory[1024];
    size_t n_dropped = 0;
    while (begin < end) {
        const size_t n = std::min<size_t>((end - begin) / page, sizeof(in_memory));
        if (mincore(begin, n * page, in_memory) != 0) {
            break;  // not mapped any more
        }
        for (size_t first = 0, i = 0; i < n; first = ++i) {
            while (i < n && (in_memory[i] & 1) != 0 && is_zero(begin + i * page, page)) {
                i++;
            }
            if (i > first && madvise(begin + first * page, (i - first) * page, MADV_DONTNEED) == 0) {
                n_dropped += (i - first) * page;
            }
        }
        begin += n * page;
    }
    return n_dropped;
}

}  // namespace

size_t lml_trim(void) {
#ifdef __GLIBC__
    malloc_trim(0);
#endif
    size_t n_dropped = 0;
    FILE * maps = std::fopen("/proc/self/maps", "re");
    if (maps == nullptr) {
        return 0;
    }
    char line[1024];
    while (std::fgets(line, sizeof(line), maps) != nullptr) {
        unsigned long begin, end, inode;
        char name[64] = "";
        // Private memory that can be written to and has no file; the stack is in use.
        const int n_read = std::sscanf(line, "%lx-%lx rw-p %*s %*s %lu %63s", &begin, &end, &inode, name);
        if (n_read >= 3 && inode == 0 && (name[0] == 0 || std::strcmp(name, "[heap]") == 0)) {
            n_dropped += drop_zeros(reinterpret_cast<char *>(begin), reinterpret_cast<char *>(end),
                                    static_cast<size_t>(sysconf(_SC_PAGESIZE)));
        }
    }
    std::fclose(maps);
    return n_dropped;
}

void lml_log(enum ggml_log_level level, const char * text, void *) {
    // CONT continues the previous line: it is shown if that line was.
    static bool shown = false;
    shown = level == GGML_LOG_LEVEL_CONT ? shown : level >= log_level;
    if (shown) {
        std::fputs(text, stderr);
    }
}

void lml_log_level(int32_t level) {
    log_level = level;
    llama_log_set(lml_log, nullptr);
    common_log_set_verbosity_thold(level <= GGML_LOG_LEVEL_DEBUG ? LOG_LEVEL_DEBUG : LOG_LEVEL_ERROR);
}

struct ggml_threadpool * lml_threads_init(struct llama_context * ctx, int32_t n_threads) {
    ggml_threadpool_params params = ggml_threadpool_params_default(n_threads);
    params.poll = 0;  // before they sleep, they spin as briefly as they can
    ggml_threadpool * threads = cpu_function<decltype(ggml_threadpool_new)>("ggml_threadpool_new")(&params);
    llama_attach_threadpool(ctx, threads, nullptr);
    return threads;
}

void lml_threads_free(struct ggml_threadpool * threads) {
    cpu_function<decltype(ggml_threadpool_free)>("ggml_threadpool_free")(threads);
}

bool lml_are_numbers(const float * logits, int32_t n_vocab) {
    int32_t is_bad = 0;  // no early exit, so that compilers can vectorize the loop
    for (int32_t i = 0; i < n_vocab; i++) {
        is_bad |= !(logits[i] < INFINITY);
    }
    return is_bad == 0;
}

float lml_logprobs(const float * logits, int32_t n_vocab, llama_token token,
                   int32_t k, llama_token * top_tokens, float * top_logprobs) {
    const float max = *std::max_element(logits, logits + n_vocab);
    double sum = 0.0;
    for (int32_t i = 0; i < n_vocab; i++) {
        sum += std::exp(static_cast<double>(logits[i] - max));
    }
    const float log_sum = max + static_cast<float>(std::log(sum));

    if (k > 0) {
        std::vector<llama_token_data> best;
        collect_best(logits, n_vocab, k, best);
        for (size_t i = 0; i < best.size(); i++) {
            top_tokens[i]   = best[i].id;
            top_logprobs[i] = best[i].logit - log_sum;
        }
    }
    return logits[token] - log_sum;
}

llama_token lml_sample(struct llama_context * ctx, int32_t index, struct llama_sampler * chain,
                       struct llama_sampler * grammar, int32_t n_best) {
    // Kept between calls: allocating candidates for a whole vocabulary for each token is too slow.
    static std::vector<llama_token_data> candidates;
    const float *  logits  = llama_get_logits_ith(ctx, index);
    const int32_t  n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx)));
    const auto     is_possible = [](const llama_token_data & one) { return one.logit > -INFINITY; };
    const auto     choose      = [&](bool constrained) -> llama_token {
        const bool cut = n_best > 0 && !constrained;  // with a grammar, the likeliest may all be refused
        if (cut) {
            collect_best(logits, n_vocab, n_best, candidates);
        } else {
            candidates.resize(n_vocab);
            for (llama_token token = 0; token < n_vocab; token++) {
                candidates[token] = { token, logits[token], 0.0f };
            }
        }
        llama_token_data_array all = { candidates.data(), candidates.size(), -1, cut };
        if (constrained) {
            llama_sampler_apply(grammar, &all);
            if (std::none_of(candidates.begin(), candidates.end(), is_possible)) {
                return LLAMA_TOKEN_NULL;
            }
        }
        llama_sampler_apply(chain, &all);
        // No token is selected if logits are not numbers.
        return all.selected < 0 ? LLAMA_TOKEN_NULL : all.data[all.selected].id;
    };
    const auto allowed = [&](llama_token token) {
        llama_token_data       one   = { token, 1.0f, 0.0f };
        llama_token_data_array alone = { &one, 1, -1, false };
        llama_sampler_apply(grammar, &alone);
        return !std::isinf(one.logit);
    };
    try {
        llama_token token = choose(grammar != nullptr && n_best < 0);
        if (grammar != nullptr && token != LLAMA_TOKEN_NULL && !allowed(token)) {
            token = choose(true);
        }
        if (token == LLAMA_TOKEN_NULL) {
            return token;
        }
        if (grammar != nullptr) {
            llama_sampler_accept(grammar, token);
        }
        llama_sampler_accept(chain, token);
        return token;
    } catch (const std::exception &) {
        return LLAMA_TOKEN_NULL;  // the grammar allows nothing
    }
}

const char * lml_layout(void) {
    static const std::string text = [] {
        std::string out;
        const auto  line = [&out](const char * name, size_t a, size_t b = 0) {
            out += std::string(name) + " " + std::to_string(a) + (b != 0 ? " " + std::to_string(b) : "") + "\n";
        };
#define FIELD(type, field) line(#type "." #field, offsetof(type, field), sizeof(type::field));
#define SIZE(type)         line(#type " sizeof", sizeof(type));
#include "build/layout.inc"  // generated from capi.py: a line for each struct and field that Python declares
#undef SIZE
#undef FIELD
        return out;
    }();
    return text.c_str();
}
