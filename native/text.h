// Strings that the bridge returns. The caller frees them with lml_free.
#pragma once

#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>

#include "json.h"

// A copy made with malloc and not with new, because lml_free calls free.
inline char * owned(const std::string & text) {
    char * copy = static_cast<char *>(std::malloc(text.size() + 1));
    if (copy != nullptr) {
        std::memcpy(copy, text.c_str(), text.size() + 1);
    }
    return copy;
}

// {"error": what} with the fields of `more`.
inline char * failure(const std::string & what, common_json more = common_json::object()) {
    try {
        more["error"] = what;
        return owned(more.dump_safe());  // `what` may quote a cut UTF-8 character
    } catch (const std::exception &) {
        return owned("{\"error\": \"the failure cannot be described\"}");
    }
}
