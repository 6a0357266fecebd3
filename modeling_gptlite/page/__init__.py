"""Pages on which people try a model: a Gradio app, and a static page that runs the model in the browser."""
