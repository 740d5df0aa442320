def results_page(predictions, metrics):
    return ""
