"""The exercises of `lmlite help how-it-works`, done."""
