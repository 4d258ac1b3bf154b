// What lmlite needs of llama.cpp beyond llama.h, behind a C interface.
//
// Four things live here: chats, from messages to a prompt and from a completion back to a
// message (chat.cpp, over llama.cpp's `common` library, which is C++); the layout of the structs
// that lmlite/worker/llama/capi.py declares by hand; the loops over a vocabulary that Python would
// make slow (bridge.cpp); and WebP, which llama.cpp cannot read (webp.cpp). Text that crosses is JSON in UTF-8. No C++ exception crosses: a failure
// is {"error": "..."}, or NULL and a text in *error. A returned string belongs to the caller, who
// gives it back to lml_free.
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

// Silences the library below a level of enum ggml_log_level; the rest goes to stderr.
// Process-wide; call it once, before anything is loaded.
LML_API void lml_log_level(int32_t level);

// What does that; for libmtmd, which has a log of its own.
LML_API void lml_log(enum ggml_log_level level, const char * text, void * data);

// Lines of "struct.field offset size" (and "struct sizeof size") as this build lays them out.
LML_API const char * lml_layout(void);

// From now on this thread may hold so many bytes more, and take so many seconds: what allocates beyond that
// gets a std::bad_alloc, which fails the functions below in words. Without bounds again at 0.
LML_API void lml_bound_thread(size_t max_bytes, float max_s);

// Reads the model's own chat template, or `override` when it is not NULL and not empty;
// ChatML when there is neither. Returns NULL and sets *error when the template does not parse.
LML_API struct lml_chat * lml_chat_init(const struct llama_model * model, const char * override, char ** error);
LML_API void              lml_chat_free(struct lml_chat * chat);

// The template's source, for inspection. Owned by `chat`.
LML_API const char * lml_chat_source(const struct lml_chat * chat);

// From a request to all that its answer needs:
//   {"messages": [...], "tools": [...], "tool_choice": "auto", "parallel_tool_calls": true,
//    "json_schema": {...}, "grammar": "...", "kwargs": {...}, "enable_thinking": true,
//    "reasoning": true}, of which only messages must be there, in OpenAI's form
//   -> {"prompt": "...", "stops": ["..."], "preserved": ["..."], "grammar": "...", ...}
// The reply as a whole is what lml_grammar_init and lml_answer_init take.
// A last message of the assistant is left open, to be continued.
// A template that refuses the messages gives {"error": its own words}. NOT thread-safe per handle.
LML_API char * lml_chat_render(struct lml_chat * chat, const char * request);

// The sampler that keeps an answer to the reply's grammar: from its start, or once a trigger
// came. NULL, and no *error, when there is no grammar. Belongs to the caller (llama_sampler_free).
LML_API struct llama_sampler * lml_grammar_init(const struct llama_vocab * vocab, const char * reply, char ** error);

// Tells a grammar of tokens that were sampled without it. False: it does not allow them.
LML_API bool lml_grammar_accept(struct llama_sampler * grammar, const llama_token * tokens, size_t n_tokens);

// Reads a completion, as it grows, as the template of the reply writes content, reasoning and
// tool calls. One thread at a time.
LML_API struct lml_answer * lml_answer_init(const char * reply, char ** error);
LML_API void                lml_answer_free(struct lml_answer * answer);

// Whether such a completion is all content, whatever it says, so that there is nothing to read.
LML_API bool lml_answer_is_plain(const struct lml_answer * answer);

// Takes more text and gives what it adds to the message, NULL for nothing:
//   {"reasoning": "...", "content": "...", "calls": [{"index": 0, "name": "...", "arguments": "..."}]}
// with the fields that grew.
LML_API char * lml_answer_push(struct lml_answer * answer, const char * text, size_t n_bytes);

// What was still unclear, in the same form, now that no more text comes. `is_whole` says that none is
// missing: a text that is then not in the template's form gives {"error": "..."}.
LML_API char * lml_answer_finish(struct lml_answer * answer, bool is_whole);

// llama_sampler_sample, at less than its price. Where the chain begins with a cut to the n_best
// likeliest tokens (1: it is greedy), no others are collected; n_best is 0 where it does not. With a
// grammar, which may be NULL, what the chain chooses is asked of it, and only if refused, the chain
// chooses among what it allows. Returns LLAMA_TOKEN_NULL when it allows nothing, or when the logits are
// no numbers. One thread at a time.
LML_API llama_token lml_sample(struct llama_context * ctx, int32_t index, struct llama_sampler * chain,
                               struct llama_sampler * grammar, int32_t n_best);

// Whether a row of logits is of numbers: none is NaN, or infinite but for a token that cannot come.
LML_API bool lml_are_numbers(const float * logits, int32_t n_vocab);

// Natural-log probabilities of one row of logits, softmax over the whole vocabulary.
// Writes the k most likely tokens, best first, and returns the log-probability of `token`.
LML_API float lml_logprobs(const float * logits, int32_t n_vocab, llama_token token,
                           int32_t k, llama_token * top_tokens, float * top_logprobs);

// The pixels of a WebP file: RGB, 8 bits each, row by row, without gaps. NULL when it is damaged, or
// takes much more memory than its pixels. For lml_free. One thread at a time.
LML_API char * lml_webp_decode(const char * data, size_t n_bytes, int32_t * width, int32_t * height);

#ifdef __cplusplus
}
#endif
