"""Every named correction of classifier-free guidance as a text, with numbers at which it does something."""

PLAIN = "cfg:scale=2.5"  # what corrections are added to
ON_CFG = {
    "zero-star": "zero_steps=1",
    "apg": "momentum=-0.5,radius=2,eta=0.3",
    "tcfg": "",
    "mambo": "alpha=2",
    "power-law": "alpha=0.3",
    "beta": "a=2,b=3,gamma=0.5",
    "adg": "max_angle=0.6",
    "fdg": "low=0.4,levels=2",
    "fresca": "low=0.5,high=1.5,cutoff=0.5",
    "fbg": "pi=0.9,start=0.4,peak=0.5,most=4",
    "rescale": "phi=0.6",
    "renorm": "rho=1",
    "energy": "phi=0.7",
    "tsr": "k=0.9,width=1.5",
    "epsilon": "factor=1.02",
    "higs": "weight=1,alpha=0.5,low=0.1",
    "refine": "beta=0.4,cutoff=0.3,high=0.8",
}
