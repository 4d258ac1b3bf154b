#include "bridge.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <numeric>
#include <string>
#include <vector>

#include "chat.h"
#include "log.h"

struct lml_chat {
    common_chat_templates_ptr templates;
    std::string               source;
};

namespace {

// malloc, not new: the caller frees through lml_free whatever allocator C++ uses.
char * owned(const std::string & text) {
    char * copy = static_cast<char *>(std::malloc(text.size() + 1));
    if (copy != nullptr) {
        std::memcpy(copy, text.c_str(), text.size() + 1);
    }
    return copy;
}

char * error_json(const std::string & what) {
    try {
        common_json body = common_json::object();
        body["error"]    = what;
        return owned(body.dump());
    } catch (const std::exception &) {
        return owned("{\"error\": \"the failure cannot be described\"}");
    }
}

std::string render(const lml_chat & chat, const std::string & request) {
    const common_json body = common_json::parse(request);

    common_chat_templates_inputs inputs;
    inputs.messages = common_chat_msgs_parse_oaicompat(body.at("messages"));
    if (!inputs.messages.empty() && inputs.messages.back().role == "assistant") {
        inputs.continue_final_message = COMMON_CHAT_CONTINUATION_AUTO;
    }
    const common_chat_params params = common_chat_templates_apply(chat.templates.get(), inputs);

    common_json stops = common_json::array();
    for (const std::string & stop : params.additional_stops) {
        stops.push_back(stop);
    }
    common_json reply = common_json::object();
    reply["prompt"]   = params.prompt;
    reply["stops"]    = stops;
    return reply.dump();
}

// common_chat_templates_init loses the reason on its way out; reading the source again finds it.
std::string template_fault(const llama_model * model, const char * override, const std::exception & lost) {
    const char * source = override != nullptr ? override : llama_model_chat_template(model, nullptr);
    try {
        common_chat_template probe(source != nullptr ? source : "", "", "");
    } catch (const std::exception & e) {
        return e.what();
    }
    return lost.what();
}

int log_level = GGML_LOG_LEVEL_WARN;

void log_to_stderr(ggml_log_level level, const char * text, void *) {
    // CONT continues the line before it, whatever level that had.
    static bool shown = false;
    shown = level == GGML_LOG_LEVEL_CONT ? shown : level >= log_level;
    if (shown) {
        std::fputs(text, stderr);
    }
}

}  // namespace

void lml_free(char * text) {
    std::free(text);
}

void lml_log_level(int32_t level) {
    log_level = level;
    llama_log_set(log_to_stderr, nullptr);
    common_log_set_verbosity_thold(level <= GGML_LOG_LEVEL_DEBUG ? LOG_LEVEL_DEBUG : LOG_LEVEL_ERROR);
}

struct lml_chat * lml_chat_init(const struct llama_model * model, const char * override, char ** error) {
    try {
        common_chat_templates_ptr templates = common_chat_templates_init(model, override == nullptr ? "" : override);
        std::string source = common_chat_templates_source(templates.get());
        return new lml_chat{ std::move(templates), std::move(source) };
    } catch (const std::exception & e) {
        *error = owned(template_fault(model, override, e));
        return nullptr;
    }
}

void lml_chat_free(struct lml_chat * chat) {
    delete chat;
}

const char * lml_chat_source(const struct lml_chat * chat) {
    return chat->source.c_str();
}

char * lml_chat_render(struct lml_chat * chat, const char * request) {
    try {
        return owned(render(*chat, request));
    } catch (const std::exception & e) {
        return error_json(e.what());
    }
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
        return out;
    }();
#undef SIZE
#undef FIELD
    return text.c_str();
}
