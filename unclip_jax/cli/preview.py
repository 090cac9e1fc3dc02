def make_preview(recipe):
    return None
