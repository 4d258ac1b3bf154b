// Text that crosses to the caller, who frees it with lml_free.
#pragma once

#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>

#include "json.h"

// By malloc, not new: lml_free uses free, whatever allocator C++ has.
inline char * owned(const std::string & text) {
    char * copy = static_cast<char *>(std::malloc(text.size() + 1));
    if (copy != nullptr) {
        std::memcpy(copy, text.c_str(), text.size() + 1);
    }
    return copy;
}

// {"error": what}, and what more there is to say.
inline char * failure(const std::string & what, common_json more = common_json::object()) {
    try {
        more["error"] = what;
        return owned(more.dump_safe());  // it may quote half a character
    } catch (const std::exception &) {
        return owned("{\"error\": \"the failure cannot be described\"}");
    }
}
