// What lmlite needs of llama.cpp beyond llama.h, behind a C interface.
//
// Three things live here: the chat templates of llama.cpp's `common` library, which
// is C++; the layout of the structs that lmlite/worker/capi.py declares by hand; and
// the one loop over a vocabulary that Python would make slow. Text that crosses is JSON
// in UTF-8. No C++ exception crosses: a failure is {"error": "..."}. A returned string
// belongs to the caller, who gives it back to lml_free.
#pragma once

#include <stdint.h>

#include "llama.h"

#ifdef __cplusplus
extern "C" {
#endif

#define LML_API __attribute__((visibility("default")))

struct lml_chat;

// Frees a string that a function of this header returned.
LML_API void lml_free(char * text);

// Silences the library below a level of enum ggml_log_level; the rest goes to stderr.
// Process-wide; call it once, before anything is loaded.
LML_API void lml_log_level(int32_t level);

// Lines of "struct.field offset size" (and "struct sizeof size") as this build lays them out.
LML_API const char * lml_layout(void);

// Reads the model's own chat template, or `override` when it is not NULL and not empty;
// ChatML when there is neither. Returns NULL and sets *error when the template does not parse.
LML_API struct lml_chat * lml_chat_init(const struct llama_model * model, const char * override, char ** error);
LML_API void              lml_chat_free(struct lml_chat * chat);

// The template's source, for inspection. Owned by `chat`.
LML_API const char * lml_chat_source(const struct lml_chat * chat);

// {"messages": [{"role", "content"}, ...]} -> {"prompt": "...", "stops": ["...", ...]}
// A last message of the assistant is left open, to be continued.
// A template that refuses the messages gives {"error": its own words}. NOT thread-safe per handle.
LML_API char * lml_chat_render(struct lml_chat * chat, const char * request);

// Natural-log probabilities of one row of logits, softmax over the whole vocabulary.
// Writes the k most likely tokens, best first, and returns the log-probability of `token`.
LML_API float lml_logprobs(const float * logits, int32_t n_vocab, llama_token token,
                           int32_t k, llama_token * top_tokens, float * top_logprobs);

#ifdef __cplusplus
}
#endif
