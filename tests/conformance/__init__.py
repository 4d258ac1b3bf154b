"""Every reply against OpenAI's own schemas."""
