#include "bridge.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <numeric>
#include <string>
#include <vector>

#include "log.h"
#include "mtmd-helper.h"

namespace {

int log_level = GGML_LOG_LEVEL_WARN;

// The n likeliest tokens, best first; of equal ones those with the smaller ids.
void collect_best(const float * logits, int32_t n_vocab, int32_t n, std::vector<llama_token_data> & best) {
    const auto likelier = [](const llama_token_data & a, const llama_token_data & b) {
        return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
    };
    n = std::min(n, n_vocab);
    best.clear();
    for (llama_token token = 0; token < n; token++) {
        best.push_back({ token, logits[token], 0.0f });
    }
    // A heap with the least likely in front: nearly all tokens are done with at one comparison.
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

}  // namespace

void lml_log(enum ggml_log_level level, const char * text, void *) {
    // CONT continues the line before it, whatever level that had.
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

bool lml_are_numbers(const float * logits, int32_t n_vocab) {
    int32_t is_bad = 0;  // a loop without an early end becomes one of vectors
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
        std::vector<llama_token> order(n_vocab);
        std::iota(order.begin(), order.end(), 0);
        // Equal logits go by token id, so that the same row always gives the same list.
        const auto likelier = [logits](llama_token a, llama_token b) {
            return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
        };
        k = std::min(k, n_vocab);
        std::partial_sort(order.begin(), order.begin() + k, order.end(), likelier);
        for (int32_t i = 0; i < k; i++) {
            top_tokens[i]   = order[i];
            top_logprobs[i] = logits[order[i]] - log_sum;
        }
    }
    return logits[token] - log_sum;
}

llama_token lml_sample(struct llama_context * ctx, int32_t index, struct llama_sampler * chain,
                       struct llama_sampler * grammar, int32_t n_best) {
    // Kept between calls: a vocabulary of candidates is too large to allocate for each token.
    static std::vector<llama_token_data> candidates;
    const float *  logits  = llama_get_logits_ith(ctx, index);
    const int32_t  n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx)));
    const auto     is_possible = [](const llama_token_data & one) { return one.logit > -INFINITY; };
    const auto     choose      = [&](bool constrained) -> llama_token {
        const bool cut = n_best > 0 && !constrained;  // the grammar may refuse the likeliest
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
        // Nothing is selected from a row that is not of numbers.
        return all.selected < 0 ? LLAMA_TOKEN_NULL : all.data[all.selected].id;
    };
    const auto allowed = [&](llama_token token) {
        llama_token_data       one   = { token, 1.0f, 0.0f };
        llama_token_data_array alone = { &one, 1, -1, false };
        llama_sampler_apply(grammar, &alone);
        return !std::isinf(one.logit);
    };
    try {
        llama_token token = choose(false);
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
#define FIELD(type, field) line(#type "." #field, offsetof(type, field), sizeof(type::field))
#define SIZE(type)         line(#type " sizeof", sizeof(type))
    static const std::string text = [] {
        std::string out;
        const auto  line = [&out](const char * name, size_t a, size_t b = 0) {
            out += std::string(name) + " " + std::to_string(a) + (b != 0 ? " " + std::to_string(b) : "") + "\n";
        };
        SIZE(llama_batch);
        FIELD(llama_batch, n_tokens);
        FIELD(llama_batch, token);
        FIELD(llama_batch, embd);
        FIELD(llama_batch, pos);
        FIELD(llama_batch, n_seq_id);
        FIELD(llama_batch, seq_id);
        FIELD(llama_batch, logits);
        SIZE(llama_model_params);
        FIELD(llama_model_params, devices);
        FIELD(llama_model_params, tensor_buft_overrides);
        FIELD(llama_model_params, n_gpu_layers);
        FIELD(llama_model_params, split_mode);
        FIELD(llama_model_params, load_mode);
        FIELD(llama_model_params, lazy_mode);
        FIELD(llama_model_params, main_gpu);
        FIELD(llama_model_params, tensor_split);
        FIELD(llama_model_params, progress_callback);
        FIELD(llama_model_params, progress_callback_user_data);
        FIELD(llama_model_params, kv_overrides);
        FIELD(llama_model_params, vocab_only);
        FIELD(llama_model_params, check_tensors);
        FIELD(llama_model_params, use_extra_bufts);
        FIELD(llama_model_params, no_host);
        FIELD(llama_model_params, no_alloc);
        FIELD(llama_model_params, load_mtp);
        SIZE(llama_context_params);
        FIELD(llama_context_params, n_ctx);
        FIELD(llama_context_params, n_batch);
        FIELD(llama_context_params, n_ubatch);
        FIELD(llama_context_params, n_seq_max);
        FIELD(llama_context_params, n_rs_seq);
        FIELD(llama_context_params, n_outputs_max);
        FIELD(llama_context_params, n_outputs_max_per_seq);
        FIELD(llama_context_params, n_threads);
        FIELD(llama_context_params, n_threads_batch);
        FIELD(llama_context_params, ctx_type);
        FIELD(llama_context_params, rope_scaling_type);
        FIELD(llama_context_params, pooling_type);
        FIELD(llama_context_params, attention_type);
        FIELD(llama_context_params, flash_attn_type);
        FIELD(llama_context_params, rope_freq_base);
        FIELD(llama_context_params, rope_freq_scale);
        FIELD(llama_context_params, yarn_ext_factor);
        FIELD(llama_context_params, yarn_attn_factor);
        FIELD(llama_context_params, yarn_beta_fast);
        FIELD(llama_context_params, yarn_beta_slow);
        FIELD(llama_context_params, yarn_orig_ctx);
        FIELD(llama_context_params, defrag_thold);
        FIELD(llama_context_params, cb_eval);
        FIELD(llama_context_params, cb_eval_user_data);
        FIELD(llama_context_params, type_k);
        FIELD(llama_context_params, type_v);
        FIELD(llama_context_params, abort_callback);
        FIELD(llama_context_params, abort_callback_data);
        FIELD(llama_context_params, embeddings);
        FIELD(llama_context_params, offload_kqv);
        FIELD(llama_context_params, no_perf);
        FIELD(llama_context_params, op_offload);
        FIELD(llama_context_params, swa_full);
        FIELD(llama_context_params, kv_unified);
        FIELD(llama_context_params, samplers);
        FIELD(llama_context_params, n_samplers);
        FIELD(llama_context_params, ctx_other);
        SIZE(llama_sampler_chain_params);
        FIELD(llama_sampler_chain_params, no_perf);
        SIZE(llama_logit_bias);
        FIELD(llama_logit_bias, token);
        FIELD(llama_logit_bias, bias);
        SIZE(llama_token_data);
        FIELD(llama_token_data, id);
        FIELD(llama_token_data, logit);
        FIELD(llama_token_data, p);
        SIZE(llama_token_data_array);
        FIELD(llama_token_data_array, data);
        FIELD(llama_token_data_array, size);
        FIELD(llama_token_data_array, selected);
        FIELD(llama_token_data_array, sorted);
        SIZE(mtmd_context_params);
        FIELD(mtmd_context_params, use_gpu);
        FIELD(mtmd_context_params, device);
        FIELD(mtmd_context_params, print_timings);
        FIELD(mtmd_context_params, n_threads);
        FIELD(mtmd_context_params, image_marker);
        FIELD(mtmd_context_params, media_marker);
        FIELD(mtmd_context_params, flash_attn_type);
        FIELD(mtmd_context_params, warmup);
        FIELD(mtmd_context_params, image_min_tokens);
        FIELD(mtmd_context_params, image_max_tokens);
        FIELD(mtmd_context_params, cb_eval);
        FIELD(mtmd_context_params, cb_eval_user_data);
        FIELD(mtmd_context_params, batch_max_tokens);
        FIELD(mtmd_context_params, progress_callback);
        FIELD(mtmd_context_params, progress_callback_user_data);
        SIZE(mtmd_input_part);
        FIELD(mtmd_input_part, text);
        FIELD(mtmd_input_part, bitmap);
        SIZE(mtmd_helper_video_init_params);
        FIELD(mtmd_helper_video_init_params, fps_target);
        FIELD(mtmd_helper_video_init_params, ffmpeg_bin_dir);
        FIELD(mtmd_helper_video_init_params, timestamp_interval_ms);
        SIZE(mtmd_helper_init_opt);
        FIELD(mtmd_helper_init_opt, video_params);
        SIZE(mtmd_helper_bitmap_wrapper);
        FIELD(mtmd_helper_bitmap_wrapper, bitmap);
        FIELD(mtmd_helper_bitmap_wrapper, video_ctx);
        return out;
    }();
#undef SIZE
#undef FIELD
    return text.c_str();
}
