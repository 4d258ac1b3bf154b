// What lmlite needs of llama.cpp beyond llama.h, behind a C interface.
//
// - chat.cpp: from messages to a prompt, over llama.cpp's `common` library, which is C++
// - answer.cpp: from a completion back to a message
// - bridge.cpp: loops over a vocabulary, too slow in Python, and the layout of the structs that
//   lmlite/worker/llama/capi.py declares
// - bounds.cpp: bounds on the memory and time of a chat template
// - webp.cpp: WebP pictures, which llama.cpp cannot read
//
// Text that crosses is JSON in UTF-8. No C++ exception crosses: a failure is {"error": "..."}, or
// NULL and a text in *error. The caller owns a returned string, and frees it with lml_free.
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

// Silences the library below a level of enum ggml_log_level; the rest goes to stderr. For the whole
// process: call it once, before anything is loaded.
LML_API void lml_log_level(int32_t level);

// The callback that writes such a log, for libmtmd, which has one of its own.
LML_API void lml_log(enum ggml_log_level level, const char * text, void * data);

// Lines of "struct.field offset size" (and "struct sizeof size") as this build lays them out.
LML_API const char * lml_layout(void);

// From now on this thread may allocate max_bytes more, for max_s seconds. An allocation beyond that throws
// std::bad_alloc, so that the functions below fail, and say why. 0, 0 ends the bounds.
LML_API void lml_bound_thread(size_t max_bytes, float max_s);

// Reads the model's own chat template, or `override` when it is not NULL and not empty;
// ChatML when there is neither. Returns NULL and sets *error when the template does not parse.
LML_API struct lml_chat * lml_chat_init(const struct llama_model * model, const char * override, char ** error);
LML_API void              lml_chat_free(struct lml_chat * chat);

// The template's source, for inspection. Owned by `chat`.
LML_API const char * lml_chat_source(const struct lml_chat * chat);

// From a request to all that its answer needs:
//   {"messages": [...], "tools": [...], "tool_choice": "auto", "parallel_tool_calls": true,
//    "schemas": [...], "json_schema": {...}, "kwargs": {...}, "enable_thinking": true,
//    "reasoning": true}, in OpenAI's form; only messages are required
//   -> {"prompt": "...", "stops": ["..."], "preserved": ["..."], "grammar": "...", ...}
// `schemas` are what the arguments of each tool are held to. lml_grammar_init and lml_answer_init
// take the whole reply. A last message of the assistant is left open, to be continued. A template
// that refuses the messages gives {"error": its own words}. One thread at a time for each handle.
LML_API char * lml_chat_render(struct lml_chat * chat, const char * request);

// The sampler that holds an answer to the reply's grammar, from its start or from a trigger on. NULL
// without *error when there is no grammar. The caller frees it with llama_sampler_free.
LML_API struct llama_sampler * lml_grammar_init(const struct llama_vocab * vocab, const char * reply, char ** error);

// Takes tokens that were sampled without the grammar. False: it does not allow them.
LML_API bool lml_grammar_accept(struct llama_sampler * grammar, const llama_token * tokens, size_t n_tokens);

// Reads a growing completion in the form in which the reply's template writes content, reasoning and
// tool calls. One thread at a time.
LML_API struct lml_answer * lml_answer_init(const char * reply, char ** error);
LML_API void                lml_answer_free(struct lml_answer * answer);

// Whether such a completion is all content, so that there is nothing to read.
LML_API bool lml_answer_is_plain(const struct lml_answer * answer);

// Takes more text. Returns what it adds to the message, NULL for nothing:
//   {"reasoning": "...", "content": "...", "calls": [{"index": 0, "name": "...", "arguments": "..."}]}
// with the fields that grew.
LML_API char * lml_answer_push(struct lml_answer * answer, const char * text, size_t n_bytes);

// Returns what was still unclear, in the same form, now that no more text comes. `is_whole`: the model
// has ended the text. If that is not in the template's form, {"error": "...", "text": all of it,
// "content": what push gave of it}.
LML_API char * lml_answer_finish(struct lml_answer * answer, bool is_whole);

// As llama_sampler_sample, but faster. A chain that begins with a cut to the n_best likeliest tokens
// (1: it is greedy) gets no others; n_best is 0 for other chains. The grammar, which may be NULL, is
// asked about the token that the chain has chosen; if it refuses that, the chain chooses among all that
// it allows. Returns LLAMA_TOKEN_NULL when it allows nothing, or when the logits are not numbers. One
// thread at a time.
LML_API llama_token lml_sample(struct llama_context * ctx, int32_t index, struct llama_sampler * chain,
                               struct llama_sampler * grammar, int32_t n_best);

// Whether no logit is NaN or positive infinity. Negative infinity is a token that cannot come.
LML_API bool lml_are_numbers(const float * logits, int32_t n_vocab);

// Natural-log probabilities of one row of logits, softmax over the whole vocabulary.
// Writes the k most likely tokens, best first, and returns the log-probability of `token`.
LML_API float lml_logprobs(const float * logits, int32_t n_vocab, llama_token token,
                           int32_t k, llama_token * top_tokens, float * top_logprobs);

// The pixels of a WebP file: RGB, 8 bits each, row by row, without gaps; free them with lml_free. NULL
// when the file is damaged, or takes much more memory than its pixels. One thread at a time.
LML_API char * lml_webp_decode(const char * data, size_t n_bytes, int32_t * width, int32_t * height);

#ifdef __cplusplus
}
#endif
