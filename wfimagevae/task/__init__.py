"""Tasks: they assemble objectives, data, evaluation and engine into a kind of training."""

# The options of each, without torch.
TASKS = {
    "vae": "wfimagevae.task.vae_options.VaeOptions",
    "flow": "wfimagevae.task.flow_options.FlowOptions",
    "glide": "wfimagevae.task.glide_options.GlideOptions",
}
