"""Power cuts, crashes and failing disks: nothing acknowledged is lost by any of them."""
