"""torchvision is imported when the first image is saved, not at each start."""

from speechbrain.utils.train_logger import logger


def _get_image_saver():
    """Returns a function that saves an image with torchvision, or warns if
    torchvision is not available - optional dependency
    """

    def save_image(*args, **kwargs):
        try:
            import torchvision
        except ImportError:
            logger.warning("torchvision is not available - cannot save figures")
        else:
            torchvision.utils.save_image(*args, **kwargs)

    return save_image
