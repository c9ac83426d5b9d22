def print_summary(model, config): pass
