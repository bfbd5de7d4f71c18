"""The server: jobs that survive, an API of our own and OpenAI's, and a studio in the browser."""
