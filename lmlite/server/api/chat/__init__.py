"""Code that the chat APIs share: messages, tools, images, and the form of an answer."""
