// An answer that is read while it grows, at a cost per token that does not grow with it.
#pragma once

#include <string>
#include <vector>

#include "chat.h"

class growing_answer {
  public:
    // `params` hold the parser that belongs to the prompt.
    explicit growing_answer(common_chat_parser_params params);

    // Whether all of an answer is content: it needs no parser.
    bool is_plain() const;

    // Takes more text and says what it adds to the message.
    std::vector<common_chat_msg_diff> push(const std::string & text);

    // What all of the text adds to what was said. `is_whole`: none is missing at its end.
    std::vector<common_chat_msg_diff> finish(bool is_whole);

  private:
    void shorten();

    common_chat_parser_params params;
    std::string               text;          // the prompt's end and all that came
    std::string               window;        // the same without the middles of long stretches
    common_chat_msg           message;       // what the parser makes of the window
    common_chat_msg           said;          // what was said of the text
    size_t                    n_unread = 0;  // bytes that came since the parser was last asked
    size_t                    n_roomy;       // a window of so many bytes is worth a cut
};
