"""How far rescaling moves a model: its attention (`attention_kl`) and hidden states (`drift`)."""
