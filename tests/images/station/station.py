#!/usr/bin/python3
"""Weather station: averages what it finds in its data folder, and says what it is made of."""

import glob
import json
import os
import sys

import numpy

HOME = "/srv/station"


def main() -> None:
    with open(f"{HOME}/config.json", encoding="utf-8") as file:
        config = json.load(file)
    years = sorted(os.path.basename(path)[:4] for path in glob.glob(f"{HOME}/data/*.csv"))
    readings = numpy.concatenate(
        [numpy.loadtxt(f"{HOME}/data/{year}.csv", delimiter=",", usecols=2) for year in years]
    )
    print(
        f"station {config['release']}: years {' '.join(years)}, {len(readings)} readings,"
        f" mean {readings.mean():.3f}, cache {' '.join(sorted(os.listdir(HOME + '/cache')))}"
    )
    sys.stdout.flush()


main()
