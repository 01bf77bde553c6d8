"""Networks of other tools, made static, their parts named; and of each family what a file says and is framed by."""
