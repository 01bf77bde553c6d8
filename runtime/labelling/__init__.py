"""Mass labelling: pictures and videos by the million to labels, on every core, GPU or machine there is."""
