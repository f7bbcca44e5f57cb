"""What people see of the fleet in a browser: pages made here, which ask nobody else for anything.

`views` take requests, `shown` turns records into what templates show, `acts` is what people may have done.
"""

__all__: list[str] = []
