"""The HTTP interface of a server: OpenAI's video API and what is beside it, and the guards in front of them."""
