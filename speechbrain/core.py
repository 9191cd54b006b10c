"""What a Brain says of its parameters. The rest of this module is upstream's."""

from speechbrain.core import logger  # upstream's own
from speechbrain.utils.logger import format_order_of_magnitude


class Brain:
    """Upstream's class with one method replaced."""

    def print_trainable_parameters(self):
        """Log how many parameters the modules have, and how many of them are trainable.

        Upstream's asked every parameter for its size, so one that is not
        initialised yet (``LazyLinear`` and its kin) ended ``Brain.__init__``.
        Such parameters are named in a warning, and the totals leave them out. A
        parameter that several modules share counts once.

        Example
        -------
        >>> Brain({"model": torch.nn.Linear(10, 10)}).print_trainable_parameters()
        """
        trainable = total = 0
        uninitialised = {}
        for name, parameter in self.modules.named_parameters():
            try:
                size = parameter.numel()
            except ValueError:  # which is how one that is not initialised answers; asking first is slower
                uninitialised[name] = parameter.requires_grad
                continue
            total += size
            if parameter.requires_grad:
                trainable += size
        if uninitialised:
            logger.warning(f"Not initialised yet, so the totals below leave them out: {', '.join(uninitialised)}")
        if total == 0 and not uninitialised:
            logger.warning("The model has no parameters!")
        elif trainable == 0 and not any(uninitialised.values()):
            logger.warning("The model has no trainable parameters!")
        percentage = f"{100 * trainable / total:.4f}" if total else "0.00"
        logger.info(
            f"{type(self).__name__} Model Statistics:\n"
            f"* Total Number of Trainable Parameters: {format_order_of_magnitude(trainable)}\n"
            f"* Total Number of Parameters: {format_order_of_magnitude(total)}\n"
            f"* Trainable Parameters represent {percentage}% of the total size."
        )
