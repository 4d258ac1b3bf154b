// Attention and products of many shapes on ggml's CPU backend.
//
// `ops write FILE EVERY` of an unpatched build writes the results to a file, `ops check FILE EVERY` of
// a patched one compares its own with them; of EVERY cases, one is run. Attention is also compared with
// the same without flash attention. Errors are normalised mean squares: the sum of (a - b)² by that of b², as in test-backend-ops.

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-cpu.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace {

// Upstream sums a token's attention in 16 bits. Beside keys of 8 bits and fewer, queries are rounded to
// 8 bits too. A wrong cell among a thousand makes 1e-3.
constexpr double ATTENTION = 1e-4;
constexpr double PRODUCTS = 1e-10;  // the order of sums
constexpr size_t N_TENSORS = 64;

[[noreturn]] void fail(const std::string & text) {
    fprintf(stderr, "%s\n", text.c_str());
    exit(1);
}

// The same numbers from every compiler.
class Random {
  public:
    uint32_t next() {
        state_ = state_ * 6364136223846793005u + 1442695040888963407u;
        return static_cast<uint32_t>(state_ >> 33);
    }
    template <typename T> T choose(const std::vector<T> & from) { return from[next() % from.size()]; }
    std::vector<float> floats(size_t n, float limit) {
        std::vector<float> result(n);
        for (float & x : result) {
            x = limit * (static_cast<float>(next() % 65536) / 32768 - 1);
        }
        return result;
    }

  private:
    uint64_t state_ = 1;
};

// Results of the other build, in a file: for each case its name, the number of floats, and these.
class Other {
  public:
    Other(bool check, const char * path, int every)
        : check_(check), every_(every), file_(fopen(path, check ? "rb" : "wb")) {
        if (!file_) {
            fail(std::string("cannot open ") + path);
        }
    }
    ~Other() { fclose(file_); }

    bool is_turn() { return n_seen_++ % every_ == 0; }

    // `plain` is the result without flash attention, if there is one.
    void compare(const std::string & name, const std::vector<float> & result, double limit,
                 const std::vector<float> & plain = {}) {
        uint32_t sizes[] = {static_cast<uint32_t>(name.size()), static_cast<uint32_t>(result.size())};
        n_cases++;
        if (!check_) {
            fwrite(sizes, sizeof sizes, 1, file_);
            fwrite(name.data(), 1, name.size(), file_);
            fwrite(result.data(), sizeof(float), result.size(), file_);
            return;
        }
        std::string other_name(name.size(), ' ');
        std::vector<float> other(result.size());
        uint32_t others[2] = {};
        if (fread(others, sizeof others, 1, file_) != 1 || memcmp(sizes, others, sizeof sizes) != 0 ||
            fread(&other_name[0], 1, name.size(), file_) != name.size() || other_name != name ||
            fread(other.data(), sizeof(float), other.size(), file_) != other.size()) {
            fail(name + ": the other build has other cases");
        }
        note(name + ", from upstream", result, other, limit, from_upstream);
        if (!plain.empty()) {
            note(name + ", from plain", result, plain, limit, from_plain);
        }
    }

    int n_cases = 0, n_failed = 0;
    double from_upstream = 0, from_plain = 0;  // the largest errors

  private:
    void note(const std::string & name, const std::vector<float> & a, const std::vector<float> & b, double limit,
              double & worst) {
        double difference = 0, size = 0;
        for (size_t i = 0; i < a.size(); i++) {
            difference += (a[i] - b[i]) * static_cast<double>(a[i] - b[i]);
            size += b[i] * static_cast<double>(b[i]);
        }
        const double error = difference / size;
        if (!(error <= limit)) {  // nor is it NaN
            printf("FAILED %s: %.1e\n", name.c_str(), error);
            n_failed++;
        }
        worst = std::max(worst, error);
    }

    bool check_;
    int every_, n_seen_ = 0;
    FILE * file_;
};

// A graph and the memory of its tensors.
class Graph {
  public:
    explicit Graph(ggml_backend_t backend)
        : backend_(backend), context(ggml_init({N_TENSORS * ggml_tensor_overhead() + 2 * ggml_graph_overhead(), nullptr, true})) {}

    void allocate() { buffer_.reset(ggml_backend_alloc_ctx_tensors(context.get(), backend_)); }

    std::vector<float> compute(ggml_tensor * output) {
        ggml_cgraph * graph = ggml_new_graph(context.get());
        ggml_build_forward_expand(graph, output);
        if (ggml_backend_graph_compute(backend_, graph) != GGML_STATUS_SUCCESS) {
            fail("the graph fails");
        }
        std::vector<float> result(ggml_nelements(output));
        ggml_backend_tensor_get(output, result.data(), 0, ggml_nbytes(output));
        return result;
    }

  private:
    ggml_backend_t backend_;
    ggml_backend_buffer_ptr buffer_;

  public:
    ggml_context_ptr context;
};

void fill(ggml_tensor * tensor, const std::vector<float> & values) {
    std::vector<uint8_t> bytes(ggml_nbytes(tensor));
    ggml_quantize_chunk(tensor->type, values.data(), bytes.data(), 0, ggml_nrows(tensor), tensor->ne[0], nullptr);
    ggml_backend_tensor_set(tensor, bytes.data(), 0, bytes.size());
}

enum class Mask { none, causal, window, sequences, blind };
const char * const MASKS[] = {"none", "causal", "window", "sequences", "blind"};

struct Attention {
    int64_t width, n_head, n_head_kv, n_tokens, n_cells;
    ggml_type type;
    Mask mask;
    bool sinks;
    float bias, softcap;
    int n_threads;

    std::string name() const {
        return "attention of " + std::to_string(n_head) + "/" + std::to_string(n_head_kv) + " heads of " +
               std::to_string(width) + ", " + std::to_string(n_tokens) + " tokens, " + std::to_string(n_cells) + " " +
               ggml_type_name(type) + ", mask " + MASKS[static_cast<int>(mask)] + (sinks ? ", sinks" : "") +
               (bias != 0 ? ", alibi" : "") + (softcap != 0 ? ", softcap" : "") + ", " + std::to_string(n_threads) +
               " threads";
    }
};

// The cells of a batch's own tokens are the last. Four tokens continue a sequence each, the others
// are a piece of a fifth one; the cells of all lie among each other.
std::vector<float> mask_of(const Attention & a, Random & random) {
    const int64_t first = a.n_cells - a.n_tokens;
    std::vector<int64_t> sequence(a.n_cells);
    for (int64_t cell = 0; cell < a.n_cells; cell++) {
        sequence[cell] = cell < first ? random.next() % 5 : std::min<int64_t>(cell - first, 4);
    }
    std::vector<float> result(a.n_cells * a.n_tokens, -INFINITY);
    for (int64_t token = 0; token < a.n_tokens; token++) {
        for (int64_t cell = 0; cell <= first + token; cell++) {
            const int64_t distance = first + token - cell;
            if ((a.mask == Mask::window && distance >= 100) || (a.mask == Mask::blind && token % 3 == 1) ||
                (a.mask == Mask::sequences && sequence[cell] != sequence[first + token])) {
                continue;
            }
            result[token * a.n_cells + cell] = a.bias != 0 ? -static_cast<float>(distance % 100) / 8 : 0.0f;
        }
    }
    return result;
}

void check(const Attention & a, ggml_backend_t backend, Other & other, Random & random) {
    Graph graph(backend);
    ggml_context * context = graph.context.get();
    ggml_tensor * q_all = ggml_new_tensor_3d(context, GGML_TYPE_F32, a.width, a.n_head, a.n_tokens);
    ggml_tensor * k_all = ggml_new_tensor_3d(context, a.type, a.width, a.n_head_kv, a.n_cells);
    ggml_tensor * v_all = ggml_new_tensor_3d(context, a.type, a.width, a.n_head_kv, a.n_cells);
    ggml_tensor * mask = a.mask == Mask::none ? nullptr : ggml_new_tensor_2d(context, GGML_TYPE_F16, a.n_cells, a.n_tokens);
    ggml_tensor * sinks = a.sinks ? ggml_new_tensor_1d(context, GGML_TYPE_F32, a.n_head) : nullptr;
    ggml_tensor * q = ggml_permute(context, q_all, 0, 2, 1, 3);
    ggml_tensor * k = ggml_permute(context, k_all, 0, 2, 1, 3);
    ggml_tensor * v = ggml_permute(context, v_all, 0, 2, 1, 3);
    const float scale = 1 / std::sqrt(static_cast<float>(a.width));

    ggml_tensor * flash = ggml_flash_attn_ext(context, q, k, v, mask, scale, a.bias, a.softcap);
    ggml_flash_attn_ext_add_sinks(flash, sinks);

    ggml_tensor * kq = ggml_mul_mat(context, ggml_cont(context, ggml_permute(context, ggml_cast(context, k_all, GGML_TYPE_F32), 0, 2, 1, 3)), q);
    if (a.softcap != 0) {
        kq = ggml_tanh(context, ggml_scale(context, kq, scale / a.softcap));
        kq = ggml_scale(context, kq, a.softcap);
    }
    kq = ggml_soft_max_ext(context, kq, mask, a.softcap != 0 ? 1 : scale, a.bias);
    ggml_soft_max_add_sinks(kq, sinks);
    ggml_tensor * values = ggml_cont(context, ggml_permute(context, ggml_cast(context, v_all, GGML_TYPE_F32), 1, 2, 0, 3));
    ggml_tensor * plain = ggml_cont(context, ggml_permute(context, ggml_mul_mat(context, values, kq), 0, 2, 1, 3));

    graph.allocate();
    fill(q_all, random.floats(ggml_nelements(q_all), 4));
    fill(k_all, random.floats(ggml_nelements(k_all), 1));
    fill(v_all, random.floats(ggml_nelements(v_all), 1));
    if (mask) {
        fill(mask, mask_of(a, random));
    }
    if (sinks) {
        fill(sinks, random.floats(a.n_head, 8));
    }
    const std::vector<float> result = graph.compute(flash);
    // softmax makes NaN of a row that sees nothing
    other.compare(a.name(), result, ATTENTION, a.mask == Mask::blind ? std::vector<float>() : graph.compute(plain));
}

void check_attention(ggml_backend_t backend, Other & other) {
    Random random;
    const std::vector<std::pair<int, int>> groups = {{4, 4}, {4, 2}, {6, 2}, {7, 1}, {10, 2}, {65, 1}};
    for (int64_t width : {64, 80, 96, 128, 256}) {
        for (ggml_type type : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0}) {
            for (Mask mask : {Mask::none, Mask::causal, Mask::window, Mask::sequences, Mask::blind}) {
                for (int options : {0, 1, 2, 4, 7}) {  // bits: sinks, ALiBi, a cap
                    const auto [n_head, n_head_kv] = random.choose(groups);
                    Attention a = {width, n_head, n_head_kv, random.choose<int64_t>({1, 1, 2, 3, 5, 17, 70}), 0, type, mask,
                                   (options & 1) != 0, mask != Mask::none && (options & 2) ? 8.0f : 0.0f,
                                   options & 4 ? 10.0f : 0.0f, random.choose<int>({1, 2, 3})};
                    a.n_cells = a.n_tokens + random.choose<int64_t>({20, 500, 600, 1000}) + random.next() % 64;
                    if (width % ggml_blck_size(type) == 0 && other.is_turn()) {
                        ggml_backend_cpu_set_n_threads(backend, a.n_threads);
                        check(a, backend, other, random);
                    }
                }
            }
        }
    }
}

void check(ggml_type type, int64_t n_in, int64_t n_out, int64_t n_tokens, int n_threads, ggml_backend_buffer_type_t place,
           ggml_backend_t backend, Other & other, Random & random) {
    Graph weights(backend), graph(backend);
    ggml_tensor * w = ggml_new_tensor_2d(weights.context.get(), type, n_in, n_out);
    ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors_from_buft(weights.context.get(), place));
    ggml_tensor * x = ggml_new_tensor_2d(graph.context.get(), GGML_TYPE_F32, n_in, n_tokens);
    ggml_tensor * product = ggml_mul_mat(graph.context.get(), w, x);
    graph.allocate();
    if (!ggml_backend_supports_op(backend, product)) {
        return;  // this processor has no interleaved form of the type
    }
    if (!other.is_turn()) {
        return;
    }
    ggml_backend_buffer_set_usage(buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    fill(w, random.floats(n_in * n_out, 1));
    fill(x, random.floats(n_in * n_tokens, 1));
    ggml_backend_cpu_set_n_threads(backend, n_threads);
    other.compare(std::string("product of ") + ggml_type_name(type) + " in " + ggml_backend_buft_name(place) + ", " +
                  std::to_string(n_in) + " x " + std::to_string(n_out) + ", " + std::to_string(n_tokens) + " tokens, " +
                  std::to_string(n_threads) + " threads", graph.compute(product), PRODUCTS);
}

void check_products(ggml_backend_t backend, Other & other) {
    Random random;
    ggml_backend_dev_t device = ggml_backend_get_device(backend);
    std::vector<ggml_backend_buffer_type_t> places = {ggml_backend_get_default_buffer_type(backend)};
    auto * more = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts"));
    for (ggml_backend_buffer_type_t * place = more(device); place && *place; place++) {
        places.push_back(*place);
    }
    for (ggml_backend_buffer_type_t place : places) {
        for (ggml_type type : {GGML_TYPE_Q4_0, GGML_TYPE_Q8_0, GGML_TYPE_Q2_K, GGML_TYPE_Q4_K, GGML_TYPE_Q5_K, GGML_TYPE_Q6_K,
                               GGML_TYPE_IQ4_NL, GGML_TYPE_MXFP4}) {
            for (int64_t n_tokens : {1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 15, 16, 17, 18, 19, 20, 31, 33, 64, 71}) {
                for (int64_t n_out : {8, 16, 24, 328}) {
                    check(type, random.choose<int64_t>({256, 512, 1280}), n_out, n_tokens, random.choose<int>({1, 2, 3}), place,
                          backend, other, random);
                }
            }
        }
    }
}

}  // namespace

int main(int argc, char ** argv) {
    const std::string mode = argc == 4 ? argv[1] : "";
    if (mode != "write" && mode != "check") {
        fail("usage: ops write FILE EVERY; ops check FILE EVERY");
    }
    Other other(mode == "check", argv[2], std::max(1, atoi(argv[3])));
    ggml_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    ggml_backend_ptr backend(ggml_backend_cpu_init());
    check_attention(backend.get(), other);
    const int n_attention = other.n_cases;
    printf("attention: %d cases, from upstream %.1e, from plain %.1e\n", n_attention, other.from_upstream, other.from_plain);
    other.from_upstream = 0;
    check_products(backend.get(), other);
    printf("products: %d cases, from upstream %.1e\n", other.n_cases - n_attention, other.from_upstream);
    return other.n_failed > 0;
}
