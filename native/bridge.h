// The bridge: a C interface for ctypes to the functions of llama.cpp that llama.h does not offer.
//
// - chat.cpp: from messages to a prompt, with llama.cpp's `common` library, which is C++
// - answer.cpp: from a completion back to a message
// - bridge.cpp: loops over a vocabulary, which are too slow in Python, and the layout of the structs
//   that lmlite/worker/llama/capi.py declares
// - bounds.cpp: limits on the memory and time of a chat template
// - webp.cpp: WebP pictures, which llama.cpp cannot read
//
// Text arguments and results are JSON in UTF-8. No function throws: a failure is {"error": "..."}, or
// NULL and a text in *error. The caller owns a returned string and frees it with lml_free.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "llama.h"

#ifdef __cplusplus
extern "C" {
#endif

#define LML_API __attribute__((visibility("default")))

struct lml_chat;
struct lml_answer;

// Frees a string that a function of this header returned.
LML_API void lml_free(char * text);

// Sets the lowest level (enum ggml_log_level) that llama.cpp and ggml log to stderr. Applies to the
// whole process: call it once, before a model is loaded.
LML_API void lml_log_level(int32_t level);

// The log callback, to be passed to libmtmd, which has a log setting of its own.
LML_API void lml_log(enum ggml_log_level level, const char * text, void * data);

// Lines of "struct.field offset size" (and "struct sizeof size") as this build lays them out.
LML_API const char * lml_layout(void);

// Gives the kernel back what is free or holds only zeros in this process's memory, such as the cells of
// a new context; the kernel provides it again when it is used. Call it while there is one thread.
// Returns the number of bytes that held zeros.
LML_API size_t lml_trim(void);

// Limits this thread to max_bytes more of memory and to max_s seconds from now. Beyond that, an allocation
// throws std::bad_alloc, so that the functions below fail and report the reason. 0, 0 ends the limits.
LML_API void lml_bound_thread(size_t max_bytes, float max_s);

// Parses `override` if it is not NULL and not empty, else the model's own chat template, else
// ChatML. Returns NULL and sets *error if the template does not parse.
LML_API struct lml_chat * lml_chat_init(const struct llama_model * model, const char * override, char ** error);
LML_API void              lml_chat_free(struct lml_chat * chat);

// The template's source. Owned by `chat`.
LML_API const char * lml_chat_source(const struct lml_chat * chat);

// Renders a request to a prompt, and returns the form of the answer with it:
//   {"messages": [...], "tools": [...], "tool_choice": "auto", "parallel_tool_calls": true,
//    "schemas": [...], "json_schema": {...}, "kwargs": {...}, "enable_thinking": true,
//    "reasoning": true}, in OpenAI's form; only messages are required
//   -> {"prompt": "...", "stops": ["..."], "preserved": ["..."], "grammar": "...", ...}
// `schemas` are the schemas that the grammar enforces for the arguments of each tool. Pass the whole
// reply to lml_grammar_init and lml_answer_init. If the last message is the assistant's, the answer
// continues it. If the template refuses the messages: {"error": its own words}. One thread per handle.
LML_API char * lml_chat_render(struct lml_chat * chat, const char * request);

// The sampler that enforces the reply's grammar, from the start of the answer or from a trigger on.
// NULL without *error if the reply has no grammar. The caller frees it with llama_sampler_free.
LML_API struct llama_sampler * lml_grammar_init(const struct llama_vocab * vocab, const char * reply, char ** error);

// Advances the grammar by tokens that were sampled without it. False: it does not allow them.
LML_API bool lml_grammar_accept(struct llama_sampler * grammar, const llama_token * tokens, size_t n_tokens);

// A parser for a growing completion, in which the reply's template writes content, reasoning and
// tool calls. One thread at a time.
LML_API struct lml_answer * lml_answer_init(const char * reply, char ** error);
LML_API void                lml_answer_free(struct lml_answer * answer);

// Whether every completion is content only, so that it need not be parsed.
LML_API bool lml_answer_is_plain(const struct lml_answer * answer);

// Takes more text. Returns what it adds to the message, or NULL if it adds nothing yet:
//   {"reasoning": "...", "content": "...", "calls": [{"index": 0, "name": "...", "arguments": "..."}]}
// with only those fields that grew.
LML_API char * lml_answer_push(struct lml_answer * answer, const char * text, size_t n_bytes);

// Ends the text; returns what lml_answer_push has held back, in the same form. `is_whole`: the model
// itself has ended the text. If it then does not match the template's form: {"error": "...",
// "text": the whole text, "content": the content returned so far}.
LML_API char * lml_answer_finish(struct lml_answer * answer, bool is_whole);

// As llama_sampler_sample, but faster. n_best: if the chain starts with a cut to the n likeliest tokens,
// this n (1: greedy), so that the chain gets only these; else 0. The chain chooses a token first. If the
// grammar, which may be NULL, refuses it, the chain chooses again among all tokens that the grammar
// allows. With n_best -1, for a chain that learns from its choices, it chooses only among those. Returns LLAMA_TOKEN_NULL if there are none, or if the logits are not numbers. One thread at a
// time.
LML_API llama_token lml_sample(struct llama_context * ctx, int32_t index, struct llama_sampler * chain,
                               struct llama_sampler * grammar, int32_t n_best);

// Starts n_threads - 1 threads for the context, beside the one that calls llama_decode, and lets it use them.
// The context's own number of threads may be lower. Between computations they sleep. Free the context first.
LML_API struct ggml_threadpool * lml_threads_init(struct llama_context * ctx, int32_t n_threads);
LML_API void                     lml_threads_free(struct ggml_threadpool * threads);

// False if a logit is NaN or positive infinity. Negative infinity is valid: a token that is excluded.
LML_API bool lml_are_numbers(const float * logits, int32_t n_vocab);

// Natural-log probabilities of one row of logits, softmax over the whole vocabulary.
// Writes the k most likely tokens, best first, and returns the log-probability of `token`.
LML_API float lml_logprobs(const float * logits, int32_t n_vocab, llama_token token,
                           int32_t k, llama_token * top_tokens, float * top_logprobs);

// The pixels of a WebP file: RGB, 8 bits each, row by row, without padding; free them with lml_free.
// NULL if the file is damaged, or needs much more memory than its pixels. One thread at a time.
LML_API char * lml_webp_decode(const char * data, size_t n_bytes, int32_t * width, int32_t * height);

#ifdef __cplusplus
}
#endif
