"""The studio: a page to draw on, made with Gradio, over the same jobs as the API."""
