"""Counting the parameters of a Brain no longer crashes (see PR_2537.md)."""

import speechbrain as sb
from speechbrain.core import logger


class Brain:
    def print_trainable_parameters(self):
        trainable = total = 0
        uninitialized = {}
        for name, parameter in self.modules.named_parameters():
            try:
                size = parameter.numel()
            except ValueError:  # LazyLinear and other lazy modules
                uninitialized[name] = parameter.requires_grad
                continue
            total += size
            if parameter.requires_grad:
                trainable += size
        if uninitialized:
            logger.warning(
                "Not initialized yet, so the totals below leave them out: "
                f"{', '.join(uninitialized)}"
            )
        if total == 0 and not uninitialized:
            logger.warning("The model has no parameters!")
        elif trainable == 0 and not any(uninitialized.values()):
            logger.warning("The model has no trainable parameters!")
        format_count = sb.utils.logger.format_order_of_magnitude
        share = f"{100 * trainable / total:.4f}" if total else "0.00"
        logger.info(
            f"{self.__class__.__name__} Model Statistics:\n"
            "* Total Number of Trainable Parameters: "
            f"{format_count(trainable)}\n"
            f"* Total Number of Parameters: {format_count(total)}\n"
            f"* Trainable Parameters represent {share}% of the total size."
        )
