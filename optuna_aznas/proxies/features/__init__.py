"""Where features are: module tree, autograd graph, hooks and the pass itself."""
